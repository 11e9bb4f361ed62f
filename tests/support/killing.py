"""`kill -9` at seeded random moments, and then the same command to its end: the bytes must be those of a whole run."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def run(arguments: Sequence[str], cwd: Path) -> float:
    """Runs `align` to its end; seconds."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "align.cli", *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return time.monotonic() - start


def kill_and_resume(
    arguments: Sequence[str], cwd: Path, *, seed: int, num_moments: int, whole_s: float, anew: Callable[[], object]
) -> None:
    """Kills the command `num_moments` times, each time amid the work that the one before left, then lets it end.

    A run that ends before its moment (work that goes on is done sooner, and machines are faster now and then) is no
    kill: what it left is removed, and another moment is drawn, from what it took.

    Args:
        arguments: of `align`.
        cwd: where it works.
        seed: of the moments, drawn between a tenth of a whole run and nearly its end.
        num_moments: kills.
        whole_s: of a run to the end.
        anew: removes everything that the command made.
    """
    moments = random.Random(seed)
    killed = 0
    for _ in range(4 * num_moments):
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "align.cli", *arguments], cwd=cwd, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(moments.uniform(0.1, 0.95) * whole_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # this process alone: its workers must end by themselves
            process.wait()
            killed += 1
            if killed == num_moments:
                run(arguments, cwd)
                return
        else:
            assert process.returncode == 0
            whole_s = min(whole_s, time.monotonic() - start)
            anew()
    raise AssertionError(f"killed {killed} times of {num_moments}: it always ended before")


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def fresh(folder: Path) -> Path:
    """An empty folder in the place of whatever is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
