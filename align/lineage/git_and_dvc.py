"""Runs git, and what DVC has no command for, as programs, in a checkout; DVC itself is run by `align.services.dvc`.

DVC has no command for single objects of a remote, so `flows.remote_objects`, which does import DVC, runs as a program
too; so does `flows.dvc_settings`, which is quicker than `dvc config`. Git is only read. Nothing here pushes, pulls,
checks out, garbage-collects or changes a branch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from align.errors import DataError, ServiceError
from align.git import environment
from align.services.dvc import last_line


def git(root: Path, *args: str) -> str | None:
    """Output of a git command; None if it fails or git is not installed."""
    try:
        done = subprocess.run(["git", *args], cwd=root, env=environment(), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout if done.returncode == 0 else None


def dvc_settings(root: Path) -> dict[str, Any]:
    """Where DVC's cache is, and its remotes, as `flows.dvc_settings` answers.

    Raises:
        DataError: a file of settings cannot be read.
    """
    command = [sys.executable, "-m", "flows.dvc_settings"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(last_line(done.stderr))
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def remote_objects(root: Path, what: str, remote: str, md5s: Iterable[str], *options: str) -> dict[str, Any]:
    """Copies or deletes objects of a DVC remote; returns what `flows.remote_objects` answers.

    Args:
        root: the checkout.
        what: `copy` or `delete`.
        remote: its name.
        md5s: of the objects.
        options: further arguments of the program.

    Raises:
        ServiceError: the remote is unavailable or unknown.
    """
    command = [sys.executable, "-m", "flows.remote_objects", what, remote, *options]
    text = "\n".join(md5s)
    done = subprocess.run(command, cwd=root, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"DVC remote '{remote}': {last_line(done.stderr)}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
