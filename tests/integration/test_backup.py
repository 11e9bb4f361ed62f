"""`make backup` and `make restore`: a checkout is brought back elsewhere and used; nothing half-made counts."""

import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from align.git import git
from align.services.tracking.tracker import Tracker
from tests.support import ROOT, old_runs
from tests.support.cpu_budget import costs
from tests.support.dvc_projects import aws_variables, environment, file_bytes, shell
from tests.support.s3_server import S3Server, serve
from tests.support.warm import commands


@pytest.fixture(scope="module", name="made")
@costs(12, "five runs of the pipeline, and MLflow's first database")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with runs, a database like Prefect's that somebody has open, and a file that nobody committed."""
    root = old_runs.make(tmp_path_factory.mktemp("backup") / "project")
    (root / ".align/prefect").mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(root / ".align/prefect/prefect.db")) as database, database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE flow_run (name)")
        database.executemany("INSERT INTO flow_run VALUES (?)", [("one",), ("two",)])
    (root / ".align/login").write_text("align:planted-word\n")
    shell(root, "dvc push --quiet", {})
    (root / ".dvc/config.local").write_text("['remote \"s3\"']\n    url = s3://b\n    session_token = planted-word\n")
    (root / "notes.txt").write_text("mine\n")
    return root


@pytest.fixture(name="project")
def _project(made: Path, tmp_path: Path) -> Path:
    root = tmp_path / "project"
    shutil.copytree(made, root, symlinks=True)
    Tracker(f"sqlite:///{root}/mlflow.db")  # corrects the addresses of the copy
    return root


def backup(root: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(commands() / "python"), "-m", "flows.backup", *words]
    variables = environment(root, {}) | {"PYTHONPATH": str(ROOT)} | (env or {})
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)


def fresh(project: Path, name: str = "elsewhere") -> Path:
    """A new clone, as a person makes it on another disk."""
    root = project.parent / "another disk" / name
    git(project.parent, "clone", "--quiet", "--branch", "main", f"file://{project}", str(root))
    return root


def used(root: Path, tmp_path: Path) -> None:
    """Runs are listed, the model is loaded, a branch is checked out: all from what lies here."""
    tracker = Tracker(f"sqlite:///{root}/mlflow.db")
    [version] = tracker.registry.versions("align")
    location = tracker._client.get_model_version_download_uri("align", "1")
    assert location.startswith(root.as_uri())
    assert (root / location.removeprefix(f"{root.as_uri()}/") / "weights").read_text().startswith("raw ")
    assert old_runs.branches(root) == [f"run/{number}" for number in range(1, 6)]
    assert git(root, "rev-parse", "run/1") == version.tags["align.git_revision"]
    for number in (1, 4):
        assert old_runs.weights(root, f"run/{number}", tmp_path / "looked-at") == f"raw {number}\n1\n"
    assert (root / "models/packaged/weights").read_text() == "raw 5\n1\n"  # the last run in place, by `dvc checkout`
    with closing(sqlite3.connect(root / ".align/prefect/prefect.db")) as database:
        assert database.execute("SELECT name FROM flow_run").fetchall() == [("one",), ("two",)]
    assert (root / "notes.txt").read_text() == "mine\n"


@pytest.mark.costs(5, "four programs, two checkouts by DVC, and MLflow")
def test_a_backup_is_restored_elsewhere_and_used(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    done = backup(project, "save", str(place))
    assert done.returncode == 0, done.stderr
    number = len(list((place / "files").rglob("*")))
    again = backup(project, "save", str(place))  # nothing is new but git's bundle and the databases, at most
    assert again.returncode == 0 and len(list((place / "files").rglob("*"))) <= number + 4
    assert not any(b"planted-word" in data for data in file_bytes(place).values())
    root = fresh(project)
    shutil.rmtree(project)  # the disk is lost
    done = backup(root, "restore", str(place))
    assert done.returncode == 0, done.stderr
    assert done.stdout == again.stdout
    used(root, tmp_path)
    done = backup(root, "save", str(place))  # it continues as the same project
    assert done.returncode == 0, done.stderr


@pytest.mark.costs(4, "three programs that speak to S3, and two checkouts by DVC")
def test_into_s3_and_back(project: Path, tmp_path: Path, s3: S3Server) -> None:
    place = f"s3://{s3.make_bucket('backups')}/team/align"
    env = aws_variables(s3)
    done = backup(project, "save", place, env=env)
    assert done.returncode == 0, done.stderr
    root = fresh(project)
    done = backup(root, "restore", place, env=env)
    assert done.returncode == 0, done.stderr
    used(root, tmp_path)
    done = backup(project, "save", place, env=env | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert done.returncode == 1 and "is it up?" in done.stderr


@pytest.fixture(scope="module", name="s3")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


def test_while_a_server_writes(project: Path, tmp_path: Path) -> None:
    """Each transaction writes two rows: a copy has both or none."""
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(project / ".align/prefect/prefect.db", timeout=60)) as database:
            while not stop.is_set():
                with database:
                    database.executemany("INSERT INTO flow_run VALUES (?)", [("first",), ("second",)])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        done = backup(project, "save", str(tmp_path / "place"))
    finally:
        stop.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    root = fresh(project)
    assert backup(root, "restore", str(tmp_path / "place")).returncode == 0
    with closing(sqlite3.connect(root / ".align/prefect/prefect.db")) as database:
        rows = dict(database.execute("SELECT name, count(*) FROM flow_run GROUP BY name").fetchall())
    assert rows.get("first", 0) == rows.get("second", 0)


def test_an_incomplete_backup_is_none(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    killed = "import os\nfrom flows.backup.place import Place\nPlace.finish = lambda *a: os._exit(9)\n"
    killed += "import sys\nfrom flows.backup.__main__ import main\nsys.exit(main())"
    env = environment(project, {}) | {"PYTHONPATH": str(ROOT)}
    command = [str(commands() / "python"), "-c", killed, "save", str(place)]
    done = subprocess.run(command, cwd=project, env=env, check=False)
    assert done.returncode == 9 and list((place / "files").rglob("*"))
    root = fresh(project)
    done = backup(root, "restore", str(place))
    assert done.returncode == 1 and "no backup there was completed" in done.stderr
    assert not (root / "mlflow.db").exists() and not (root / ".dvc/cache").exists()
    assert backup(project, "save", str(place)).returncode == 0
    assert backup(root, "restore", str(place)).returncode == 0


@pytest.mark.costs(3, "five programs and two checkouts by DVC")
def test_a_damaged_backup_leaves_no_databases(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert backup(project, "save", str(place)).returncode == 0
    [manifest] = (place / "backups").iterdir()
    files = sorted(
        (path for path in (place / "files").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    victim = next(path for path in files if path.read_bytes().startswith(b"raw 3"))
    whole = victim.read_bytes()
    victim.write_bytes(b"RAW 3" + whole[5:])
    root = fresh(project)
    done = backup(root, "restore", str(place))
    assert done.returncode == 1 and "damaged" in done.stderr and len(done.stderr.splitlines()) < 5
    assert not (root / "mlflow.db").exists()
    victim.unlink()
    assert "missing, though a backup names it" in backup(root, "restore", str(place)).stderr
    victim.write_bytes(whole)
    text = manifest.read_text()
    manifest.write_text(text.replace("project", "tcejorp"))
    assert "missing or damaged" in backup(root, "restore", str(place)).stderr
    manifest.write_text(text)
    done = backup(root, "restore", str(place))  # the interrupted one is completed
    assert done.returncode == 0, done.stderr
    used(root, tmp_path)


def test_nothing_of_anybody_is_overwritten(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    assert backup(project, "save", str(place)).returncode == 0
    done = backup(project, "restore", str(place))
    assert done.returncode == 1 and "restore into a checkout in which nothing was run" in done.stderr
    changed = fresh(project, "changed")
    (changed / "params.yaml").write_text((changed / "params.yaml").read_text() + "# mine\n")
    done = backup(changed, "restore", str(place))
    assert done.returncode == 1 and "params.yaml" in done.stderr
    other = old_runs.make_repository(tmp_path / "other", {"params.yaml": old_runs.PARAMS_FILE.read_text()}, "# other\n")
    done = backup(other, "restore", str(place))
    assert done.returncode == 1 and "backups of another repository" in done.stderr
    done = backup(other, "save", str(place))
    assert done.returncode == 1 and "holds the backups of another project" in done.stderr
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.jpg").touch()
    done = backup(project, "save", str(tmp_path / "photos"))
    assert done.returncode == 1 and "is not empty and holds no backups" in done.stderr
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["one.jpg"]
    done = backup(project, "save", str(project / "inside"))
    assert done.returncode == 1 and "lies in the checkout that is backed up" in done.stderr
    assert "say where: make backup TO=" in backup(project, "save").stderr


def test_branches_with_other_commits_stay(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    git(project, "branch", "feature", "run/2")
    assert backup(project, "save", str(place)).returncode == 0
    root = fresh(project)
    mine = git(
        root, "-c", "user.name=x", "-c", "user.email=x@y", "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "mine"
    )
    git(root, "branch", "feature", mine)
    done = backup(root, "restore", str(place))
    assert done.returncode == 0, done.stderr
    assert git(root, "rev-parse", "feature") == mine
    assert git(root, "rev-parse", "backup/feature") == git(project, "rev-parse", "run/2")
