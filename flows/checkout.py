"""Where a run works and what it leaves in git: worktrees, snapshots, and the branch run/<name>.

All of it is plumbing on objects and refs: HEAD, the index and the files of the user's checkout stay as they are.
dvc.lock is the result of a run, so main does not track it; each run/<name> does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align.config import load_params
from align.errors import ConfigError, DataError

LOCK_FILE = "dvc.lock"
#: New files under these count as source, though git does not know them yet.
SOURCES = ("align", "flows", "data/policy")


def git(root: Path, *args: str, env: Mapping[str, str] | None = None) -> str:
    """Output of a git command, stripped.

    Raises:
        DataError: git failed, with its words.
    """
    done = subprocess.run(
        ["git", *args], cwd=root, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DataError(f"git {args[0]} in {root}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def resolve(root: Path, ref: str, kind: str = "commit") -> str:
    """The hash of the commit that `ref` names, or of its tree.

    Raises:
        DataError: there is no such commit.
    """
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{{kind}}}")
    except DataError:
        raise DataError(f"'{ref}' names no commit in {root}") from None


def changes(root: Path) -> list[str]:
    """Files of the checkout that differ from HEAD or are new, dvc.lock apart."""
    lines = subprocess.run(
        ["git", "status", "--porcelain", "--no-renames"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [path for path in (line[3:] for line in lines) if path != LOCK_FILE]


def check_name(root: Path, name: str) -> None:
    """Raises ConfigError if no branch run/<name> can be written: a bad name, or the branch is checked out."""
    try:
        git(root, "check-ref-format", "--branch", f"run/{name}")
    except DataError:
        raise ConfigError(f"run name '{name}' makes no valid branch run/{name}") from None
    if f"branch refs/heads/run/{name}" in git(root, "worktree", "list", "--porcelain").splitlines():
        raise ConfigError(f"branch run/{name} is checked out: switch to another branch, or name the run otherwise")


def snapshot(root: Path, message: str) -> str:
    """Commits the files as they stand (tracked ones, new sources, dvc.lock) on top of HEAD; returns the commit."""
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
    return git(root, "commit-tree", tree, "-p", "HEAD", "-m", message, env=_identity(root))


def record(root: Path, name: str, message: str) -> str:
    """Points branch run/<name> at a snapshot of the checkout; an equal one is left. Returns the commit."""
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


def _identity(root: Path) -> dict[str, str]:
    """An author where the user has told git of none: a fresh machine can run the pipeline."""
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
        git(root, "var", "GIT_AUTHOR_IDENT")
    except DataError:
        who = {"NAME": "align", "EMAIL": "align@localhost"}
        return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    return {}


@contextmanager
def worktree(root: Path, commit: str, path: Path, overrides: Mapping[str, Any]) -> Iterator[Path]:
    """A checkout of `commit` beside the user's, with its own params.yaml; it shares the DVC cache and the checkpoints.

    Args:
        root: the user's checkout.
        commit: what to check out.
        path: the new folder, removed at the end; the caller holds a lock for it.
        overrides: `section.key` -> value, written into its params.yaml.

    Raises:
        ConfigError: an override names an unknown parameter.
    """
    _remove(root, path)  # left by a killed run
    git(root, "worktree", "add", "--detach", str(path), commit)
    try:
        write_params(path / "params.yaml", overrides)
        _share(root, path)
        yield path
    finally:
        _remove(root, path)


def write_params(file: Path, overrides: Mapping[str, Any]) -> None:
    """Changes values in a params file and keeps its comments.

    Raises:
        ConfigError: an override names an unknown parameter.
    """
    if not overrides:
        return
    load_params(file, [f"{key}=null" for key in overrides])  # knows the key, or says which it does not know
    yaml = YAML()
    yaml.width = 4096
    yaml.preserve_quotes = True
    values = yaml.load(file.read_text("utf-8"))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node[parent]
        node[last] = value
    with file.open("w", encoding="utf-8") as stream:
        yaml.dump(values, stream)


def _share(root: Path, path: Path) -> None:
    """The user's own DVC settings (credentials of a remote), the cache, and the folder of checkpoints."""
    settings = root / ".dvc" / "config.local"
    if settings.exists():
        shutil.copy(settings, path / ".dvc" / "config.local")
    cache = _dvc(root, "cache", "dir")
    _dvc(path, "cache", "dir", "--local", str((root / cache).resolve()))
    checkpoints = load_params(root / "params.yaml").values["paths"]["checkpoints"]
    (root / checkpoints).mkdir(parents=True, exist_ok=True)
    (path / checkpoints).symlink_to(root / checkpoints)  # survive the worktree, so that a cancelled run resumes


def _dvc(root: Path, *args: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"dvc {args[0]} in {root}: {done.stderr.strip()}")
    return done.stdout.strip()


def _remove(root: Path, path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    git(root, "worktree", "prune")
