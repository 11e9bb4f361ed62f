"""Who is seen to be at work, and what counts as a record of DVC."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from align.git import git
from align.services.tracking.registry import Version
from align.services.tracking.tracker import PARENT
from align.services.tracking_retention import LoggedRun
from flows.request import Request
from flows.retention import mlflow_runs
from flows.retention.history import History, md5s_in
from flows.retention.item import clear, dispose
from flows.retention.live import nobody_else, workers
from flows.workspace import in_checkout, in_worktree
from tests.support.dvc_projects import make_repository
from tests.support.params import PARAMS_FILE


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    return make_repository(
        tmp_path / "project", {"params.yaml": PARAMS_FILE.read_text(), "dvc.yaml": "stages: {}\n"}, ""
    )


def is_alone(root: Path) -> bool:
    with nobody_else(root) as alone:
        return alone


def test_a_run_keeps_the_removal_of_objects_out(root: Path) -> None:
    assert is_alone(root)
    with in_checkout(root, "one", print):
        assert not is_alone(root)
        assert [worker.who for worker in workers(root, root / "checkpoints", [root])] == ["run 'one'"]
        with in_worktree(root, Request(name="two", ref="main"), print):  # runs do not keep each other out
            assert not is_alone(root)
            assert len(workers(root, root / "checkpoints", [root])) == 2
    assert is_alone(root) and workers(root, root / "checkpoints", [root]) == []


@pytest.mark.parametrize("text", ["", "[", "3", '{"a": 1}', '{"a": {"write": {"pid": "x"}}}', '{"a": {"read": [{}]}}'])
def test_a_list_of_dvc_that_cannot_be_read_may_be_one_that_is_being_written(root: Path, text: str) -> None:
    (root / ".dvc/tmp").mkdir(exist_ok=True)
    (root / ".dvc/tmp/rwlock").write_text(text)
    [worker] = workers(root, root / "checkpoints", [root, root / "gone"])
    assert worker.who == f"perhaps DVC: {root / '.dvc/tmp/rwlock'} cannot be read"
    (root / ".dvc/tmp/rwlock").write_text("{}")
    assert workers(root, root / "checkpoints", [root]) == []


def test_dvc_at_work_is_seen_by_its_process(root: Path) -> None:
    (root / ".dvc/tmp").mkdir(exist_ok=True)
    users = [{"pid": os.getpid(), "cmd": "dvc repro"}, {"pid": 2**22 + 1, "cmd": "dvc push"}]
    (root / ".dvc/tmp/rwlock").write_text(json.dumps({"data": {"read": users}}))
    assert [worker.who for worker in workers(root, root / "checkpoints", [root])] == ["`dvc repro`"]


def test_a_training_by_hand_is_seen(root: Path) -> None:
    folder = root / "checkpoints/0123456789abcdef-01234567"
    folder.mkdir(parents=True)
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        [worker] = workers(root, root / "checkpoints", [root])
        assert worker.who == f"the training in {folder}" and worker.since == (folder / "lock").stat().st_mtime


def test_every_digest_of_a_record_counts() -> None:
    one, two = "0" * 32, "1" * 32 + ".dir"
    assert md5s_in(f"outs:\n- md5: {one}\n  size: 1\n- hash: md5\n  md5: '{two}'\n".encode()) == {one, two}
    assert md5s_in(b"\xff\xfe md5: short") == set()


def test_a_branch_with_a_commit_of_a_person_is_no_run_s(root: Path) -> None:
    date = {"GIT_COMMITTER_DATE": "@1 +0000", "GIT_AUTHOR_DATE": "@1 +0000"}
    who = ("-c", "user.name=x", "-c", "user.email=x@y")
    for name, message in (("old", "run old"), ("mine", "my change"), ("here", "run here"), ("kept", "run kept")):
        commit = git(root, *who, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", message, env=date)
        git(root, "branch", f"run/{name}", commit)
    git(root, "switch", "--quiet", "run/here")
    history = History(root)
    gone = history.runs(num_kept=0, younger=100)
    assert {branch.name for branch in gone} == {"run/old", "run/kept"}
    assert history.runs(num_kept=None, younger=100) == [] == history.runs(num_kept=0, younger=1)
    git(root, "branch", "--force", "run/old", "main")  # recorded again meanwhile
    for branch in gone:
        history.remove(branch)
        history.remove(branch)  # twice is no error
    assert git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads/run/").splitlines() == [
        "run/here", "run/mine", "run/old",
    ]  # fmt: skip


def test_what_a_killed_removal_has_left_goes_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        dispose(tmp_path / "one")
    [left] = [path for path in tmp_path.iterdir() if path.name.startswith(".one.")]
    left.rename(left.with_name(left.name.replace(f".{os.getpid()}.", f".{2**22 + 1}.")))  # of a process that has ended
    clear(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "two"]
    dispose(tmp_path / "gone already")


def test_an_evaluation_stays_as_long_as_the_version_that_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {"align.flow_run": "f"}
    runs = [
        LoggedRun(name, name, "FINISHED", 0.0, tags | ({PARENT: parent} if parent else {}), (), None, False)
        for name, parent in (("made", None), ("of made", "made"), ("of another", "gone"), ("alone", None))
    ]
    monkeypatch.setattr(mlflow_runs, "logged_runs", lambda *_: runs)
    tracker: Any = None
    items = mlflow_runs.old_runs(
        tracker, "align", Path(), versions=[Version("align", 1, "made", {})], commits=(), before=1.0
    )
    assert [item.names for item in items] == [("of another (of anoth)",), ("alone (alone)",)]
