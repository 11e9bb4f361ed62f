"""One section in a process of its own: NAME JOURNAL SECONDS cpu|cuda; on stdin the names of checks that are made.

A compiler that hangs, a kernel that writes where it must not, and a batch that is too large end this process alone.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path

import torch

from align.cli import silence_telemetry
from align.training.process_group import _end_with_parent
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.scale import TOWERS, Scale, scale

#: Of the time that a section has, what it leaves for its end.
_SPARE_S = 3.0


def work(name: str, size: Scale, journal: Journal, done: frozenset[str]) -> None:
    """Does a section's work. Only its own module is imported: what it needs may be missing here."""
    profile_name = name.removeprefix("steps-")
    module = {"open_clip": "peer", "compile": "compiled"}.get(name, "steps" if profile_name in TOWERS else name)
    own = importlib.import_module(f"benchmarks.gpu.{module}")
    if module == "checks":
        own.make(own.all_checks(), size, journal, done)
    elif module == "steps":
        own.run(size, journal, profile_name)
    else:
        own.run(size, journal)


def main() -> int:
    name, path, seconds, device = sys.argv[1:]
    _end_with_parent()
    silence_telemetry()
    if device == "cpu":
        torch.set_num_threads(1)
    done = frozenset(sys.stdin.read().splitlines())
    journal = Journal(Path(path), time.monotonic() + float(seconds) - _SPARE_S)
    work(name, scale(device == "cpu"), journal, done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
