"""Records a run in git as branch run/<name>: the code, the parameters and dvc.lock, in one commit on top of HEAD.

Works on git's objects and refs only: HEAD, the index and the files of the user's checkout stay as they are.
"""

from __future__ import annotations

import os
from pathlib import Path

from align.config import load_params
from align.config.params import PARAMS_FILE
from align.errors import ConfigError, DataError
from align.git import identity
from flows.git_repository import LOCK_FILE, git, resolve

#: New files here are part of a run, even if git does not track them yet; `*.dvc` is what `dvc add` writes.
NEW = ("align", "flows", "data/policy", LOCK_FILE, "*.dvc")


def check_name(root: Path, name: str) -> None:
    """Raises ConfigError if branch run/<name> cannot be written: the name is invalid, or the branch is checked out."""
    try:
        git(root, "check-ref-format", "--branch", f"run/{name}")
    except DataError:
        raise ConfigError(f"run name '{name}': run/{name} is not a valid branch name") from None
    if f"branch refs/heads/run/{name}" in git(root, "worktree", "list", "--porcelain").splitlines():
        raise ConfigError(f"branch run/{name} is checked out: switch to another branch, or give the run another name")


def snapshot(root: Path, message: str) -> str:
    """Commits the files as they are now on top of HEAD: tracked ones, NEW ones, and new evaluation sets and queries.

    Returns the commit. What git ignores is not in it.
    """
    index = {"GIT_INDEX_FILE": git(root, "rev-parse", "--path-format=absolute", "--git-path", f"align-{os.getpid()}")}
    try:
        git(root, "read-tree", "HEAD", env=index)
        git(root, "add", "--update", env=index)
        others = ("ls-files", "--others", "--exclude-standard", "--")
        if new := [path for path in (*NEW, *_measured(root)) if git(root, *others, path, env=index)]:
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


def _measured(root: Path) -> list[str]:
    """The evaluation sets and the labelled queries, as far as they lie in the checkout."""
    if not (root / PARAMS_FILE).is_file():
        return []
    values = load_params(root / PARAMS_FILE).values
    found = []
    for value in (values.get("paths", {}).get("evaluation"), values.get("index", {}).get("queries")):
        path = Path(os.path.normpath(root / value)) if isinstance(value, str) else root
        if path != root and path.is_relative_to(root) and not path.is_symlink():
            found.append(f":(literal){path.relative_to(root).as_posix()}")
    return found


def _content(root: Path, commit: str) -> str:
    return git(root, "show", "--no-patch", "--format=%T %P", commit)
