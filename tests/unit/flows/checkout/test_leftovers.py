"""What a run leaves that is killed at any moment: the next one, or a repair, clears it and keeps what it reported."""

import json
import os
import shutil
import subprocess
import time

import pytest

from align.errors import DataError, LockedError
from align.pipeline.run_records import RunRecord, hold, locks
from align.services.git import git
from flows.checkout import leftovers
from flows.checkout.failed_runs import folder_for
from flows.checkout.leftovers import sweep
from flows.checkout.workspace import in_worktree
from flows.request import Request
from flows.tasks.run_context import log_file
from tests.support import warm
from tests.support.dvc_projects import enter, make_repository

PARAMS = "paths:\n  checkpoints: checkpoints\n  reports: reports\nfilter:\n  min_words: 3\n"
#: A run that reaches a phase, says so, and waits there for its end. `git` is slow in the first phase.
RUN = """
import sys, time
from pathlib import Path
from flows.checkout import workspace
from flows.request import Request
from flows.tasks.run_context import log_file
from flows.checkout.workspace import in_worktree
phase = sys.argv[1]
def stop(*_):
    print("there", flush=True)
    time.sleep(60)
if phase == "share":
    workspace._share = stop
if phase == "params":
    workspace.write_params = stop
if phase == "remove":
    workspace.remove = stop
with in_worktree(Path.cwd(), Request(name="first"), lambda line: None) as work:
    log_file(work.root).parent.mkdir(parents=True, exist_ok=True)
    log_file(work.root).write_text("what was printed")
    (work.root / "reports").mkdir()
    (work.root / "reports/report.json").write_text("{}")
    if phase == "work":
        stop()
"""


@pytest.fixture(name="project")
def _project(tmp_path, monkeypatch):
    return enter(make_repository(tmp_path / "project", {"params.yaml": PARAMS}, ""), monkeypatch)


def killed_in(project, phase):
    """The key of a run's worktree that was killed there."""
    command = [str(warm.commands() / "python"), "-c", RUN, phase]
    run = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True)
    assert run.stdout and run.stdout.readline() == "there\n"
    [path] = (project / ".align/worktrees").iterdir()
    sweep(project, lambda line: pytest.fail(line))  # it lives
    assert path.exists()
    warm.kill(run.pid)
    run.communicate()
    return path.name


def is_clear(project):
    assert list((project / ".align/worktrees").iterdir()) == []
    assert len(git(project, "worktree", "list").splitlines()) == 1
    assert not list((project / ".git").glob("worktrees/*"))


@pytest.mark.parametrize("phase", ["params", "share", "work", "remove"])
def test_killed_in_any_phase(project, phase):
    killed_in(project, phase)
    said = []
    sweep(project, said.append)
    is_clear(project)
    kept = list((project / ".align/failed").glob("killed-*"))
    if phase in ("work", "remove"):
        assert (kept[0] / "reports/report.json").is_file() and (kept[0] / "log.txt").read_text() == "what was printed"
        assert json.loads((kept[0] / "run.json").read_bytes())["state"] == "killed"
        assert "its reports and its log are kept in" in said[0]
    else:
        assert not kept and not said  # nothing was reported yet
    sweep(project, lambda line: pytest.fail(line))
    with in_worktree(project, Request(name="second"), lambda line: None) as work:
        assert work.root.exists()


def test_git_was_killed_while_it_made_the_worktree(project):
    """Its half made worktree is locked, which `git worktree prune` respects for good."""
    path = project / ".align/worktrees/0123456789abcdef"
    git(project, "worktree", "add", "--detach", "--lock", "--reason", "initializing", str(path), "HEAD")
    (path / "params.yaml").unlink()
    sweep(project, lambda line: pytest.fail(line))
    is_clear(project)
    git(project, "worktree", "add", "--detach", "--lock", "--reason", "initializing", str(path), "HEAD")
    shutil.rmtree(path)
    sweep(project, lambda line: pytest.fail(line))
    is_clear(project)


def test_a_worktree_of_a_person_stays(project, tmp_path):
    killed_in(project, "work")
    git(project, "worktree", "add", "--detach", str(tmp_path / "mine"))
    git(project, "worktree", "add", "--detach", str(tmp_path / "on a disk that is not mounted"))
    shutil.rmtree(tmp_path / "on a disk that is not mounted")
    sweep(project, lambda line: None)
    assert len(git(project, "worktree", "list").splitlines()) == 3


def test_the_next_equal_run_keeps_what_the_killed_one_reported_under_its_name(project):
    """It waits for the lock, so no repair could come before it."""
    key = killed_in(project, "work")
    worktree = project / ".align/worktrees" / key
    hold(RunRecord("wide/first", "f1", 1, "", "", str(project), str(worktree))).close()
    with in_worktree(project, Request(name="second"), lambda line: None) as work:
        assert work.root == worktree and not (work.root / "reports").exists()
    kept = folder_for(project, "wide/first", key)
    about = json.loads((kept / "run.json").read_bytes())
    head = git(project, "rev-parse", "HEAD")
    assert (about["name"], about["flow_run"], about["commit"]) == ("wide/first", "f1", head)
    assert len(locks(project)) == 1  # the record waits for those who know Prefect


@pytest.mark.parametrize("duration_s", [1, pytest.param(3, marks=pytest.mark.kill)])
def test_a_run_that_waits_for_a_killed_one_is_not_hit(project, duration_s):
    """Several repairs at once, while equal runs take the place one after another."""
    code = (
        "import time; from pathlib import Path; from flows.checkout.leftovers import sweep\n"
        f"end = time.monotonic() + {duration_s}\nwhile time.monotonic() < end: sweep(Path.cwd(), print)"
    )
    sweeps = [subprocess.Popen([str(warm.commands() / "python"), "-c", code], cwd=project) for _ in range(2)]
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        with in_worktree(project, Request(name="live"), lambda line: None) as work:
            log_file(work.root).parent.mkdir(parents=True, exist_ok=True)
            log_file(work.root).write_text("mine")
            time.sleep(0.05)
            assert log_file(work.root).read_text() == "mine" and (work.root / "params.yaml").is_file()
    assert [process.wait(60) for process in sweeps] == [0, 0]
    is_clear(project)


def test_long_and_foreign_names_fit_a_folder(tmp_path):
    for name in ("日" * 300, "a/b; rm -rf", "..", "-x", "é" * 79 + "\n"):
        folder = folder_for(tmp_path, name, "0123456789")
        assert len(os.fsencode(folder.name)) <= 89 and folder.parent == tmp_path / ".align/failed"
        folder.mkdir(parents=True)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_half_made_worktree_does_not_block_the_next_equal_run(project, is_whole):
    with in_worktree(project, Request(), lambda line: None) as work:
        path = work.root
    git(project, "worktree", "add", "--detach", "--lock", "--reason", "initializing", str(path), "HEAD")
    if not is_whole:
        shutil.rmtree(path)
    with in_worktree(project, Request(), lambda line: None) as work:
        assert work.root == path and (path / "params.yaml").is_file()
    is_clear(project)


def test_a_trainer_that_still_saves_is_waited_for(project):
    """It was told to stop when its run was killed, and writes its checkpoint through the worktree's link."""
    key = killed_in(project, "work")
    worktree = project / ".align/worktrees" / key
    trainer = subprocess.Popen(["sh", "-c", "sleep 2; echo 7 > checkpoints/step"], cwd=worktree)
    sweep(project, lambda line: None)
    is_clear(project)
    assert trainer.wait() == 0
    assert (project / "checkpoints/step").read_text() == "7\n"


def test_a_process_that_does_not_leave_is_named(project, monkeypatch):
    monkeypatch.setattr(leftovers, "GRACE_S", -5.0)
    key = killed_in(project, "work")
    worktree = project / ".align/worktrees" / key
    with subprocess.Popen(["sleep", "60"], cwd=worktree) as process:
        said = []
        sweep(project, said.append)
        assert said == [f"{worktree}: process {process.pid} of a killed run still works there: left for the next time"]
        with pytest.raises(LockedError, match="still works there"), in_worktree(project, Request(), print):
            pass
        process.kill()
    assert worktree.exists()
    sweep(project, lambda line: None)
    is_clear(project)


@pytest.mark.parametrize("num_failures", [4, 5])
def test_git_that_meets_another_one_is_asked_again(project, monkeypatch, num_failures):
    left = [DataError("fatal: failed to read .git/worktrees/other/commondir")] * num_failures

    def busy(*words):
        if left:
            raise left.pop()
        return git(*words)  # type: ignore[arg-type]

    (project / ".align/worktrees").mkdir(parents=True)
    monkeypatch.setattr(leftovers, "git", busy)
    if num_failures == 4:
        sweep(project, pytest.fail)
    else:
        with pytest.raises(DataError, match="commondir"):
            sweep(project, pytest.fail)
