"""A tag of git for each registered version: on the commit that has its dvc.lock, made once, never moved."""

import hashlib
from pathlib import Path

import pytest

from align.release.registration.version_tag import keep_in_git
from align.services.git import git
from align.services.tracking.registry import Version
from flows.checkout import run_branch
from tests.support.dvc_projects import make_repository


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    root = make_repository(tmp_path / "project", {"dvc.yaml": "stages: {}\n", "params.yaml": "{}\n"}, "")
    write(root, "one")
    return root


def write(root: Path, lock: str) -> str:
    """Writes a dvc.lock; returns its digest."""
    (root / "dvc.lock").write_text(f"{lock}\n")
    return hashlib.sha256(f"{lock}\n".encode()).hexdigest()


def keep(root: Path, number: int, lock: str, revision: str | None = None, name: str = "align") -> str | None:
    """Tags version `number`, which was registered from this dvc.lock."""
    digest = hashlib.sha256(f"{lock}\n".encode()).hexdigest()
    version = Version(name, number, "run", {"align.dvc_lock": digest})
    now = hashlib.sha256((root / "dvc.lock").read_bytes()).hexdigest()
    return keep_in_git(root, version, revision or git(root, "rev-parse", "HEAD"), now)


def tags(root: Path) -> list[str]:
    return git(root, "tag").splitlines()


def test_the_commit_of_a_run_is_tagged_and_stays_without_its_branch(root: Path) -> None:
    run = run_branch.record(root, "demo", "a run")
    for _ in range(2):
        assert keep(root, 1, "one", run.commit) == "align/align/v1"
    assert git(root, "rev-parse", "align/align/v1") == run.commit
    write(root, "another run's")  # while this one is registered
    assert keep(root, 1, "one", run.commit) == "align/align/v1"
    git(root, "branch", "--quiet", "-D", "run/demo")
    git(root, "gc", "--quiet", "--prune=now")
    assert git(root, "show", "align/align/v1:dvc.lock") == "one"


def test_what_nobody_committed_is_in_a_commit_of_its_own(root: Path) -> None:
    """After `dvc repro` and `align register`: main has no dvc.lock, and the checkout may differ from it."""
    (root / "params.yaml").write_text("{a: 1}\n")
    head = git(root, "rev-parse", "HEAD")
    before = git(root, "status", "--porcelain")
    assert keep(root, 1, "one", f"{head}-dirty") == keep(root, 1, "one", f"{head}-dirty") == "align/align/v1"
    assert git(root, "rev-parse", "align/align/v1^") == head and git(root, "status", "--porcelain") == before
    assert git(root, "show", "align/align/v1:dvc.lock") == "one"
    assert git(root, "show", "align/align/v1:params.yaml") == "{a: 1}"


def test_a_tag_is_never_moved(root: Path) -> None:
    keep(root, 1, "one")
    first = git(root, "rev-parse", "align/align/v1")
    write(root, "two")  # the same model again, by another way
    assert keep(root, 1, "one") == "align/align/v1" and tags(root) == ["align/align/v1"]
    assert keep(root, 1, "two") == "align/align/v1-2"  # version 1 of another registry
    assert keep(root, 1, "two") == "align/align/v1-2" and keep(root, 12, "two") == "align/align/v12"
    assert git(root, "rev-parse", "align/align/v1") == first
    assert git(root, "show", "align/align/v1-2:dvc.lock") == "two"


def test_every_name_of_a_model_is_one_of_a_tag(root: Path) -> None:
    for name, tag in (("a b", "a-b"), ("v1..x.lock", "v1-x-lock"), ("é", "é"), (".", "-")):
        assert keep(root, 3, "one", name=name) == f"align/{tag}/v3"


def test_without_a_repository_or_a_commit_there_is_no_tag(tmp_path: Path) -> None:
    version = Version("align", 1, "run", {})
    assert keep_in_git(tmp_path, version, "", "") is None
    git(tmp_path, "init", "--quiet")
    assert keep_in_git(tmp_path, version, "", "") is None
