"""DVC as a program, and `align.project.code`, which has to run before it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from align.errors import DataError
from align.project.declared import CODE_FILE, DVC_FILE


def dvc(root: Path, *args: str) -> str:
    """Output of a DVC command.

    Raises:
        DataError: it fails; the message has DVC's last line.
    """
    done = _run(root, "dvc", *args)
    if done.returncode:
        raise DataError(f"`dvc {' '.join(args)}`: {_last_line(done.stderr)}")
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
        raise DataError(f"{CODE_FILE}: {_last_line(done.stderr).removeprefix('align: error: ')}")


def _last_line(text: str) -> str:
    """The last line of a program, without `ERROR: `."""
    lines = [line.removeprefix("ERROR: ") for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _run(root: Path, module: str, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *args]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
