"""Records a run in git as branch run/<name>: the code, the parameters and dvc.lock, in one commit on top of HEAD.

Works on git's objects and refs only: HEAD, the index and the files of the user's checkout stay as they are.
"""

from __future__ import annotations

import os
from pathlib import Path

from align.errors import ConfigError, DataError
from align.git import identity
from flows.git_repository import LOCK_FILE, git, resolve

#: New files in these folders count as source, even if git does not track them yet.
SOURCES = ("align", "flows", "data/policy")


def check_name(root: Path, name: str) -> None:
    """Raises ConfigError if branch run/<name> cannot be written: the name is invalid, or the branch is checked out."""
    try:
        git(root, "check-ref-format", "--branch", f"run/{name}")
    except DataError:
        raise ConfigError(f"run name '{name}': run/{name} is not a valid branch name") from None
    if f"branch refs/heads/run/{name}" in git(root, "worktree", "list", "--porcelain").splitlines():
        raise ConfigError(f"branch run/{name} is checked out: switch to another branch, or give the run another name")


def snapshot(root: Path, message: str) -> str:
    """Commits the files as they are now (tracked ones, new sources, dvc.lock) on top of HEAD; returns the commit."""
    index = {"GIT_INDEX_FILE": git(root, "rev-parse", "--path-format=absolute", "--git-path", f"align-{os.getpid()}")}
    new = [path for path in (*SOURCES, LOCK_FILE) if (root / path).exists()]
    try:
        git(root, "read-tree", "HEAD", env=index)
        git(root, "add", "--update", env=index)
        if new:
            git(root, "add", "--", *new, env=index)
        tree = git(root, "write-tree", env=index)
    finally:
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
    return git(root, "commit-tree", tree, "-p", "HEAD", "-m", message, env=identity(root))


def record(root: Path, name: str, message: str) -> str:
    """Points branch run/<name> at a snapshot of the checkout, unless it has an equal one. Returns the commit."""
    branch = f"refs/heads/run/{name}"
    commit = snapshot(root, message)
    try:
        tip = resolve(root, branch)
    except DataError:
        tip = ""
    if tip and _content(root, tip) == _content(root, commit):
        return tip
    git(root, "update-ref", "--create-reflog", "-m", message, branch, commit)
    return commit


def _content(root: Path, commit: str) -> str:
    return git(root, "show", "--no-patch", "--format=%T %P", commit)
