"""One section in a process of its own: NAME JOURNAL SECONDS cpu|cuda; on stdin the names of checks that are made.

A compiler that hangs, a kernel that writes where it must not, and a batch that is too large end this process alone.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch

from align.cli import silence_telemetry
from align.durable.processes import when_parent_ends
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.machine import in_a_line
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
    when_parent_ends(partial(os._exit, 1))
    silence_telemetry()
    if device == "cpu":
        torch.set_num_threads(1)
    done = frozenset(sys.stdin.read().splitlines())
    journal = Journal(Path(path), time.monotonic() + float(seconds) - _SPARE_S)
    try:
        work(name, scale(device == "cpu"), journal, done)
    except Exception as error:  # noqa: BLE001  # whatever it is, the page shows the last line
        _end(error)
    return 0


def _end(error: Exception) -> None:
    """Ends the process at once: on a card that is lost, the usual end prints more lines, and may hang."""
    sys.stdout.flush()
    traceback.print_exception(error)
    print(in_a_line(error), file=sys.stderr, flush=True)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
