"""Runs every benchmark, prints one table, and with `--write` puts it into the README beside this file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from align.cli import silence_telemetry
from align.stage import say
from tests.benchmarks import preprocess, ranks, reading, train_loader, training
from tests.benchmarks.measure import Comparison
from tests.benchmarks.page import conditions, table, write_section
from tests.benchmarks.world import World, build

BENCHMARKS: tuple[Callable[[World], list[Comparison]], ...] = (
    training.run, ranks.run, preprocess.run, reading.run, train_loader.run,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into tests/benchmarks/README.md")
    write = parser.parse_args().write
    silence_telemetry()
    torch.set_num_threads(1)
    start, load = time.monotonic(), os.getloadavg()[0]
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        world = build(Path(folder))
        for run in BENCHMARKS:
            say(f"benchmark: {run.__module__.rpartition('.')[2]}")
            rows += run(world)
        sample = world.describe()
    text = f"{table(rows)}\n\n{conditions(sample, ('torch', 'pillow', 'webdataset'), load)}"
    print(text)
    say(f"benchmark: {time.monotonic() - start:.0f} s")
    if write:
        write_section("`make bench`", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
