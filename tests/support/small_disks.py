"""Runs a program with a small disk of its own, or a read-only one, in a mount namespace that ends with it."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support import ROOT, missing


def with_disk(
    folder: Path, arguments: Sequence[object], *, size: str = "2m", before: str = "true", read_only: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments while `folder` is a disk of that size.

    Args:
        folder: exists; the disk hides what is in it.
        arguments: of Python.
        size: as `mount` writes it.
        before: a shell command that prepares the disk, with its path as `$1`.
        read_only: whether nothing can be written to it afterwards.
    """
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0:
        missing("a disk of the test's own needs util-linux and user namespaces")
    lines = [f'mount -t tmpfs -o size={size} none "$1"', before]
    lines += ['mount -o remount,ro "$1"'] if read_only else []
    script = " && ".join([*lines, 'shift && exec "$@"'])
    command = ["unshare", "-rm", "sh", "-c", script, "sh", folder, sys.executable, *arguments]
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
