"""DVC as a program, and `align.project.code`, which has to run before it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from align.errors import DataError
from align.project.declared import CODE_FILE, DVC_FILE


def dvc(root: Path, *args: str) -> str:
    """Output of a DVC command.

    Raises:
        DataError: it fails; the message has DVC's last line.
    """
    done = _run(root, "dvc", *args)
    if done.returncode:
        raise DataError(f"`dvc {' '.join(args)}`: {last_line(done.stderr)}")
    return done.stdout


def write_code(root: Path, env: Mapping[str, str] | None = None) -> None:
    """Writes code.yaml for the code there, if a stage of dvc.yaml does so; DVC reads it before it runs that stage.

    Args:
        root: of the checkout.
        env: of the command, which says whose code is imported; None: as here.

    Raises:
        DataError: the code is not what Python reads.
    """
    file = root / DVC_FILE
    if not file.is_file() or CODE_FILE not in file.read_text("utf-8", "replace"):
        return
    done = _run(root, "align.project.code", env=env)
    if done.returncode:
        raise DataError(f"{CODE_FILE}: {last_line(done.stderr).removeprefix('align: error: ')}")


def record_outs(root: Path, stage: str) -> None:
    """Tells DVC that the stage made its outs as they are now, from its deps and values as they are now.

    Raises:
        DataError: DVC refuses, or another DVC command is running.
    """
    write_code(root)
    dvc(root, "commit", "--force", stage)


class Changes(NamedTuple):
    """What differs from the last run of a stage that DVC recorded, beside its outs.

    Attributes:
        deps: paths; params.yaml stands for the stage's values there.
        other: what DVC says of the stage itself, such as `changed command`; also of one that it has never recorded.
    """

    deps: frozenset[str]
    other: frozenset[str]


def changes_of(root: Path, stage: str) -> Changes:
    """What has changed since DVC recorded a stage.

    Raises:
        DataError: DVC refuses, or another DVC command is running.
    """
    write_code(root)
    deps, other = set[str](), set[str]()
    for change in json.loads(dvc(root, "status", "--json", stage) or "{}").get(stage, []):
        for what, paths in change.items() if isinstance(change, dict) else [(str(change), {})]:
            if what == "changed deps":
                deps.update(paths)
            elif what != "changed outs":
                other.add(what)
    return Changes(frozenset(deps), frozenset(other))


def last_line(text: str) -> str:
    """The last line of a program, without `ERROR: `."""
    lines = [line.removeprefix("ERROR: ") for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _run(root: Path, module: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
