"""One section in a process of its own: NAME JOURNAL SECONDS cpu|cuda; on stdin the names of checks that are made.

A compiler that hangs, a kernel that writes where it must not, and a batch that is too large end this process alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from align.cli import silence_telemetry
from benchmarks.gpu import checks, compiled, fed, peer, steps
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.scale import TOWERS, Scale, scale

#: Of the time that a section has, what it leaves for its end.
_SPARE_S = 3.0

Work = Callable[[Scale, Journal], None]


def works(done: frozenset[str] = frozenset()) -> dict[str, Work]:
    """Name of a section -> what it does."""
    return {
        "checks": lambda size, journal: checks.make(checks.all_checks(), size, journal, done),
        **{f"steps-{name}": partial(_steps, name) for name in TOWERS},
        "open_clip": peer.run, "fed": fed.run, "compile": compiled.run,
    }  # fmt: skip


def _steps(name: str, size: Scale, journal: Journal) -> None:
    steps.run(size, journal, name)


def main() -> int:
    name, path, seconds, device = sys.argv[1:]
    silence_telemetry()
    if device == "cpu":
        torch.set_num_threads(1)
    done = frozenset(sys.stdin.read().splitlines())
    journal = Journal(Path(path), time.monotonic() + float(seconds) - _SPARE_S)
    works(done)[name](scale(device == "cpu"), journal)
    return 0


if __name__ == "__main__":
    sys.exit(main())
