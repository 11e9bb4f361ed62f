"""Runs git in a checkout: commands, commits, and which files have changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from align.errors import DataError
from align.git import environment
from align.git import git as git

#: The result of a run, so main does not track it; each branch run/<name> does.
LOCK_FILE = "dvc.lock"


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
    """Files of the checkout that differ from HEAD or are new, except dvc.lock."""
    lines = subprocess.run(
        ["git", "status", "--porcelain", "--no-renames"],
        cwd=root,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [path for path in (line[3:] for line in lines) if path != LOCK_FILE]
