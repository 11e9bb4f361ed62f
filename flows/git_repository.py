"""Runs git in a checkout: commands, commits, and which files have changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from align.errors import DataError
from align.git import environment
from align.git import git as git

#: For git commands that reach a server: nobody is there to type a password, and one that does not answer ends them.
_UNATTENDED = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20 -oServerAliveInterval=15",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
}
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
        raise DataError(f"{ref!r} names no commit in {root}") from None


def network_git(root: Path, *args: str) -> str:
    """Output of a git command that reaches a server. What the user has set in the environment stays.

    Raises:
        DataError: it failed; the message is git's.
    """
    return git(root, *args, env={name: os.environ.get(name, value) for name, value in _UNATTENDED.items()})


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
