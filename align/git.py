"""Runs git in a repository."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from align.errors import DataError


def git(root: Path, *args: str, env: Mapping[str, str] | None = None) -> str:
    """Output of a git command, stripped.

    Raises:
        DataError: git is not installed, or it failed; the message is git's.
    """
    try:
        done = subprocess.run(
            ["git", *args], cwd=root, env={**environment(), **(env or {})}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise DataError("git is not installed, or not on PATH; install it first") from None
    except ValueError:  # an argument that no program can be given
        raise DataError(f"git {args[0]} in {root}: an argument holds a null byte, or is not Unicode") from None
    if done.returncode:
        raise DataError(f"git {args[0]} in {root}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def environment() -> dict[str, str]:
    """For a git command in a given folder: without variables, as a hook has them, that name another repository.

    Raises:
        FileNotFoundError: git is not installed.
    """
    return {name: value for name, value in os.environ.items() if name not in _of_a_repository()}


@functools.cache
def _of_a_repository() -> frozenset[str]:
    """Names of variables; those with settings (`git -c`) are not among them."""
    done = subprocess.run(["git", "rev-parse", "--local-env-vars"], capture_output=True, text=True, check=False)
    return frozenset(name for name in done.stdout.split() if not name.startswith("GIT_CONFIG"))


def identity(root: Path) -> dict[str, str]:
    """The environment for a commit: an author, if git has none in its settings, as on a fresh machine."""
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
        git(root, "var", "GIT_AUTHOR_IDENT")
    except DataError:
        who = {"NAME": "align", "EMAIL": "align@localhost"}
        return {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
    return {}
