"""`align gc` removes what old runs left, and nothing that a version, a tag, a person or a run may need."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.config.params_file import write_params
from align.git import git
from align.services.tracking.database import settle
from align.services.tracking.tracker import Tracker
from align.services.tracking_retention import logged_runs
from flows.retention.cache import dvc_locked
from flows.retention.live import needs_everything
from tests.support import old_runs
from tests.support.cpu_budget import costs
from tests.support.dvc_projects import attempt, file_bytes, shell
from tests.support.warm import commands


@pytest.fixture(scope="module", name="made")
@costs(12, "five runs of the pipeline, and MLflow's first database")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_runs.make(tmp_path_factory.mktemp("old") / "project")


@pytest.fixture(scope="module", name="cleaned")
def _cleaned(made: Path) -> Path:
    """After a whole removal."""
    root = copy(made, made.with_name("cleaned"))
    assert old_runs.gc(root, "--yes").returncode == 0
    return root


@pytest.fixture(name="project")
def _project(made: Path, tmp_path: Path) -> Path:
    return copy(made, tmp_path / "project")


def copy(made: Path, root: Path) -> Path:
    """A copy of its own; times are copied, too."""
    shutil.copytree(made, root, symlinks=True)
    settle(root / "mlflow.db")
    return root


def everything(root: Path) -> dict[str, bytes]:
    """What lies there, without what reading changes."""
    passing = (".git/worktrees", ".dvc/tmp", ".align/prefect", ".align/locks", ".align/login")
    return {path: data for path, data in file_bytes(root).items() if not path.startswith(passing)}


@pytest.mark.costs(5, "three removals, and five checkouts by DVC of what is kept")
def test_it_lists_first_and_removes_only_when_told(project: Path, tmp_path: Path) -> None:
    shell(project, "mkdir -p .align/remote && cp -r .dvc/cache/files .dvc/cache/runs .align/remote", {})
    git(project, "tag", "keep-me", "run/3")
    git(project, "branch", "a-person", "run/3")
    old_runs.decide(project, 2)
    page = project / ".align/promotions/20200101T120000Z-version-1"
    page.mkdir(parents=True)
    os.utime(page, (0, 0))
    before = everything(project)

    done = old_runs.gc(project)
    assert done.returncode == 0, done.stderr
    assert everything(project) == before and page.is_dir()
    listed = {line[:40].strip(): line[40:].split() for line in done.stdout.splitlines() if line and line[0] != " "}
    assert listed["branches of runs"][0] == "2"  # 3, whose commit a tag names, and 4
    assert listed["runs of MLflow"][0] == "1" and int(listed["runs of MLflow"][1]) > 0  # 4
    assert listed["checkpoints of finished trainings"][0] == "5"
    assert listed["promotions"][0] == "1"
    objects, num_entries = int(listed["objects of DVC's cache"][0]), 3
    assert objects > 5 and int(listed["objects of DVC's remote 'local'"][0]) == objects + num_entries
    assert listed["entries of DVC's run cache"][0] == "3"
    assert "nothing is removed yet: add --yes" in done.stderr

    done = old_runs.gc(project, "--yes")
    assert done.returncode == 0, done.stderr
    assert old_runs.branches(project) == ["run/1", "run/2", "run/5"] and not page.exists()
    after = everything(project)
    assert old_runs.gc(project, "--yes").stdout == "nothing to remove\n" and everything(project) == after
    for revision, number in (("run/1", 1), ("run/2", 2), ("keep-me", 3), ("run/5", 5)):
        assert old_runs.weights(project, revision, tmp_path / "elsewhere") == f"raw {number}\n1\n"
    remote = project / ".align/remote/files"  # has kept them, too
    assert file_bytes(remote) == file_bytes(project / ".dvc/cache/files")
    shutil.rmtree(project / ".dvc/cache/files")
    git(project, "worktree", "add", "--quiet", "--detach", str(tmp_path / "pulled"), "keep-me")
    (tmp_path / "pulled/.dvc/config.local").write_text(f"['remote \"there\"']\n    url = {remote.parent}\n")
    shell(tmp_path / "pulled", "dvc pull --quiet --remote there", {})
    assert (tmp_path / "pulled/models/packaged/weights").read_text() == "raw 3\n1\n"
    git(project, "worktree", "remove", "--force", str(tmp_path / "pulled"))
    assert sorted(git(project, "branch", "--format=%(refname:short)").splitlines()) == [
        "a-person", "main", "run/1", "run/2", "run/5",
    ]  # fmt: skip


@pytest.mark.costs(6, "two whole `dvc repro`; alone, it imports MLflow")
def test_a_registered_version_is_used_afterwards_and_a_removed_run_runs_again(cleaned: Path, tmp_path: Path) -> None:
    project = copy(cleaned, tmp_path / "project")
    assert old_runs.branches(project) == ["run/1", "run/5"]
    tracker = Tracker(f"sqlite:///{project}/mlflow.db")
    [version] = tracker.registry.versions("align")
    assert old_runs.weights(project, version.tags["align.git_revision"], tmp_path / "there") == "raw 1\n1\n"
    runs = {run.name: run for run in logged_runs(tracker, old_runs.EXPERIMENT, project)}
    assert [name for name, run in runs.items() if not run.removed] == ["5", "1"]
    assert {name for name, run in runs.items() if run.artifacts and run.artifacts.is_dir()} == {"1", "5"}
    write_params(project / "params.yaml", {"ingest.shard_size": 3})  # its outs are gone, and so are its entries
    said = shell(project, "dvc repro", {})
    assert said.count("Running stage") == 3
    assert (project / "models/packaged/weights").read_text() == "raw 3\n1\n"
    write_params(project / "params.yaml", {"ingest.shard_size": 1})  # kept, with its entries
    assert "Running stage" not in shell(project, "dvc repro", {})


def test_an_entry_without_its_outs_does_no_harm(project: Path) -> None:
    """As a removal leaves it that was killed between the two, and as `dvc gc` leaves it."""
    for number in (2, 3):
        assert shell(project, f"git show run/{number}:dvc.lock | grep -c md5:", {})
    lock = git(project, "show", "run/3:dvc.lock")
    for line in lock.splitlines():
        if "md5:" in line and line.split()[1] != "md5":
            md5 = line.split()[1]
            (project / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink(missing_ok=True)
    write_params(project / "params.yaml", {"ingest.shard_size": 3})
    assert "Running stage" in shell(project, "dvc repro", {})
    assert (project / "models/packaged/weights").read_text() == "raw 3\n1\n"


def test_a_model_that_was_registered_from_files_that_nobody_committed_is_kept(project: Path) -> None:
    """Its dvc.lock is in no revision: the run cache says what it was made from."""
    tracker = Tracker(f"sqlite:///{project}/mlflow.db")
    run = tracker.find_runs(old_runs.EXPERIMENT, "align.git_revision", git(project, "rev-parse", "run/3"))[0]
    tags = {"align.git_revision": f"{git(project, 'rev-parse', 'main')}-dirty", "align.dvc_lock": "0" * 64}
    tracker.registry.create_version("align", run, "model", tags | {"align.model_digest": "model-3"})
    tracker.registry.create_version("align", run, "model", tags | {"align.model_digest": "unheard-of"})
    done = old_runs.gc(project, "--yes")
    assert done.returncode == 0 and "run/3" not in old_runs.branches(project)
    assert "nothing here tells which data align version 3 needs" in done.stderr
    write_params(project / "params.yaml", {"ingest.shard_size": 3})
    assert "Running stage" not in shell(project, "dvc repro", {})
    assert (project / "models/packaged/weights").read_text() == "raw 3\n1\n"


def test_beside_a_run_at_work(project: Path) -> None:
    """Its stages may come from any object of the cache, and it may resume any training that has not ended."""
    (old_runs.checkpoints(project, 2) / "speed.json").unlink()
    with needs_everything(project, print), (old_runs.checkpoints(project, 1) / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.utime(lock.name)
        before = file_bytes(project / ".dvc/cache")
        done = old_runs.gc(project, "--yes")
    assert done.returncode == 0, done.stderr
    assert "DVC's cache stay as they are: somebody is at work" in done.stderr
    assert file_bytes(project / ".dvc/cache") == before and len(old_runs.branches(project)) == 5
    left = [number for number in range(1, 6) if old_runs.checkpoints(project, number).exists()]
    assert left == [1, 2]
    assert old_runs.gc(project, "--yes").returncode == 0
    assert old_runs.branches(project) == ["run/1", "run/5"]


def test_a_run_that_starts_meanwhile_waits(project: Path) -> None:
    waiter = (
        "import sys; from pathlib import Path; from flows.retention.live import needs_everything\n"
        "with needs_everything(Path(sys.argv[1]), lambda line: print(line, flush=True)): print('works', flush=True)"
    )
    (project / ".align/locks").mkdir(parents=True, exist_ok=True)
    with (project / ".align/locks/retention").open("a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as `align gc` has it
        with subprocess.Popen([sys.executable, "-c", waiter, str(project)], stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None and run.stdout.readline().startswith("waiting for `align gc`")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert run.stdout.readline() == "works\n"


def test_dvc_at_work_by_hand_is_seen(project: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        user = {"pid": process.pid, "cmd": "dvc repro"}
        (project / ".dvc/tmp/rwlock").write_text(json.dumps({"data/raw": {"write": user}}))
        done = old_runs.gc(project)
        process.kill()
    assert "somebody is at work (`dvc repro`)" in done.stderr
    assert "at work" not in old_runs.gc(project).stderr  # it has ended


def test_dvc_and_a_removal_keep_each_other_out(project: Path) -> None:
    with dvc_locked(project):
        done = old_runs.gc(project, "--yes")
        assert done.returncode == 1 and "align: error: a DVC command is at work in this checkout" in done.stderr
        assert attempt(project, "dvc repro", {}).returncode != 0
    assert len(old_runs.branches(project)) == 5 and attempt(project, "dvc repro", {}).returncode == 0


def test_what_it_did_not_make_stays(project: Path) -> None:
    """Data that somebody added and has not committed; a commit on top of a run; folders; another's pushed data; a store
    that others may use, unless `retention.stores` says that nobody does.
    """
    (project / "mydata").mkdir()
    (project / "mydata/own").write_text("raw 4\n")  # the same bytes as an out of a run that goes
    (project / "own.csv").write_text("own")
    shell(project, "dvc add --quiet mydata/own own.csv --force || true; dvc add --quiet own.csv", {})
    (project / "own.csv.dvc").rename(project / "own.csv.dvc.draft")  # no record names it any more
    shell(project, "git worktree add -q ../two run/2 && cd ../two && git switch -q -c run/2-mine", {})
    shell(project.parent / "two", "git -c user.name=x -c user.email=x@y commit -q --allow-empty -m 'my change'", {})
    for name in ("checkpoints/mine", ".align/failed/mine", ".align/remote/files/md5/ab"):
        (project / name).mkdir(parents=True)
        (project / name / "file").write_text("own")
    for path in (project / "checkpoints").rglob("*"):
        os.utime(path, (0, 0))
    store, tars = store_of_tars(project)
    done = old_runs.gc(project, "--yes", "--set", f"store.objects={store}", "--set", "retention.stores=false")
    assert done.returncode == 0 and "run/4" not in old_runs.branches(project)
    assert all(tar.exists() for tar in tars.values())
    for name in ("checkpoints/mine", ".align/failed/mine", ".align/remote/files/md5/ab"):
        assert (project / name / "file").read_text() == "own"
    (project / "own.csv.dvc.draft").rename(project / "own.csv.dvc")
    (project / "own.csv").unlink()
    shell(project, "dvc checkout --quiet own.csv", {})
    assert "run/2-mine" in old_runs.branches(project)


@pytest.mark.parametrize("kills", [(3,), pytest.param((9, 3, 0), marks=pytest.mark.full)])
def test_killed_at_any_point_it_continues(project: Path, cleaned: Path, tmp_path: Path, kills: tuple[int, ...]) -> None:
    kill = (
        "import os, sys; from pathlib import Path; from flows.retention import __main__ as program\n"
        "from dataclasses import replace\n"
        "real, left = program.make_plan, [int(sys.argv.pop(1))]\n"
        "def counted(remove):\n"
        "    def count():\n"
        "        left[0] -= 1\n"
        "        if left[0] < 0: os._exit(9)\n"
        "        remove()\n"
        "    return count\n"
        "def make_plan(*a):\n"
        "    plan = real(*a)\n"
        "    return replace(plan, items=[replace(item, remove=counted(item.remove)) for item in plan.items])\n"
        "program.make_plan = make_plan\n"
        "sys.exit(program.main())"
    )
    env = old_runs.environment(project, {}) | {"PYTHONPATH": str(old_runs.ROOT)}
    arguments = ["--yes", "--set", "retention.num_runs=1"]
    for number in kills:  # of the items: after one branch, after the entries, before the objects
        done = subprocess.run(
            [str(commands() / "python"), "-c", kill, str(number), *arguments], cwd=project, env=env, check=False
        )
        assert done.returncode == 9
    assert old_runs.gc(project, "--yes").returncode == 0
    assert file_bytes(project / ".dvc/cache") == file_bytes(cleaned / ".dvc/cache")
    assert old_runs.branches(project) == ["run/1", "run/5"]
    assert old_runs.weights(project, "run/1", tmp_path / "there") == "raw 1\n1\n"
    assert not (project / ".align/gc.json").exists()


def test_tars_of_a_store_go_with_the_last_run_that_names_them(project: Path) -> None:
    store, tars = store_of_tars(project)
    done = old_runs.gc(project, "--yes", "--set", f"store.objects={store}", "--set", "retention.stores=true")
    assert done.returncode == 0 and "tars of the object store" in done.stdout, done.stderr
    assert [number for number, tar in tars.items() if tar.exists()] == [1, 5, 6]  # nothing here ever named the last


def store_of_tars(project: Path) -> tuple[Path, dict[int, Path]]:
    """A store with the tar of each run, and one of nobody: number -> file."""
    store = project.parent / "store"
    tars = {number: store / "00" / f"{number:064d}.tar" for number in range(1, 7)}
    for tar in tars.values():
        tar.parent.mkdir(parents=True, exist_ok=True)
        tar.write_bytes(b"tar!")
    return store, tars


def test_an_unreachable_remote_stops_before_anything_is_removed(project: Path) -> None:
    shell(project, "dvc remote modify --local local url /nowhere/at/all", {})
    before = everything(project)
    done = old_runs.gc(project, "--yes")
    assert done.returncode == 1 and "align: error: DVC remote 'local': /nowhere/at: no such folder" in done.stderr
    assert everything(project) == before


def test_young_runs_stay_whatever_their_number(project: Path) -> None:
    for path in (project / ".dvc/cache/runs").rglob("*"):
        os.utime(path, (time.time(), time.time()))
    assert old_runs.gc(project, "--yes", "--set", "retention.days=200").returncode == 0
    assert len(old_runs.branches(project)) == 5
    assert old_runs.gc(project, "--set", "retention.num_runs=null").stdout == "nothing to remove\n"


def test_without_mlflow_s_answer_nothing_goes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = everything(project)
    done = old_runs.gc(project, "--yes")
    assert done.returncode == 1 and "align: error: MLflow at http://127.0.0.1:9" in done.stderr
    assert everything(project) == before
