"""Runs git in a repository; no other module does. Variables that name another repository never reach it."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.errors import DataError

#: For git commands that reach a server: nobody can type a password, and a server that does not answer ends them.
_UNATTENDED = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20 -oServerAliveInterval=15",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",
    "GIT_HTTP_LOW_SPEED_TIME": "60",
}
#: The result of a run, so main does not track it; each branch run/<name> does.
LOCK_FILE = "dvc.lock"


def git(root: Path, *args: str, env: Mapping[str, str] | None = None) -> str:
    """Output of a git command, stripped.

    Raises:
        DataError: git is not installed, or it failed; the message is git's.
    """
    return _output(root, args, env).strip()


def git_if_any(root: Path, *args: str) -> str | None:
    """The bytes that a git command prints; None if it fails, as without a repository or without git."""
    try:
        return _output(root, args)
    except DataError:
        return None


def network_git(root: Path, *args: str) -> str:
    """Output of a git command that reaches a server. What the user has set in the environment stays.

    Raises:
        DataError: it failed; the message is git's.
    """
    return git(root, *args, env={name: os.environ.get(name, value) for name, value in _UNATTENDED.items()})


def resolve(root: Path, ref: str, kind: str = "commit") -> str:
    """The hash of the commit that `ref` names, or of its tree. Raises DataError if there is no such commit."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{{kind}}}")
    except DataError:
        raise DataError(f"{ref!r} names no commit in {root}") from None


def changes(root: Path) -> list[str]:
    """Files of the checkout that differ from HEAD or are new, except dvc.lock. Raises DataError as `git`."""
    lines = _output(root, ("status", "--porcelain", "--no-renames")).splitlines()
    return [path for path in (line[3:] for line in lines) if path != LOCK_FILE]


def identity(root: Path) -> dict[str, str]:
    """The environment for a commit: an author, if git has none in its settings, as on a fresh machine."""
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
        git(root, "var", "GIT_AUTHOR_IDENT")
    except DataError:
        who = {"NAME": "align", "EMAIL": "align@localhost"}
        return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    return {}


def commit_files(root: Path, new: Sequence[str], message: str) -> str:
    """Commits the files as they are now on top of HEAD: tracked ones and `new` ones, but none that git ignores.

    HEAD, the index and the files of the checkout stay as they are.

    Args:
        root: the checkout.
        new: paths of files that git may not track yet; some may be missing.
        message: of the commit.

    Returns:
        The commit.
    """
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", "HEAD", env=index)
        git(root, "add", "--update", env=index)
        others = ("ls-files", "--others", "--exclude-standard", "--")
        if found := [path for path in new if git(root, *others, path, env=index)]:
            git(root, "add", "--", *found, env=index)
        tree = git(root, "write-tree", env=index)
    return git(root, "commit-tree", tree, "-p", "HEAD", "-m", message, env=identity(root))


@functools.cache
def _of_a_repository() -> frozenset[str]:
    """Variables that name another repository, as a hook has them; those with settings (`git -c`) are not among them."""
    done = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=False)
    return frozenset(name for name in done.stdout.split() if not name.startswith("GIT_CONFIG"))


def _output(root: Path, args: tuple[str, ...], env: Mapping[str, str] | None = None) -> str:
    try:
        here = {name: value for name, value in os.environ.items() if name not in _of_a_repository()} | dict(env or {})
        done = subprocess.run(["git", *args], cwd=root, env=here, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError("git is not installed, or not on PATH; install it first") from None
    except ValueError:  # an argument that no program can get
        raise DataError(f"git {args[0]} in {root}: an argument holds a null byte, or is not Unicode") from None
    if done.returncode:
        raise DataError(f"git {args[0]} in {root}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
