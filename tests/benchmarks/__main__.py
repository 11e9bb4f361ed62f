"""Runs the benchmarks of the training half, prints one table, and with `--write` puts it into the README beside.

Names of benchmarks as arguments run only these: `python -m tests.benchmarks losses`.
"""

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
from tests.benchmarks import losses, preprocess, ranks, reading, train_loader, training
from tests.benchmarks.measure import Comparison
from tests.benchmarks.page import conditions, table, write_section
from tests.benchmarks.world import World, build

BENCHMARKS: tuple[Callable[[World], list[Comparison]], ...] = (
    losses.run, training.run, ranks.run, preprocess.run, reading.run, train_loader.run,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = [run.__module__.rpartition(".")[2] for run in BENCHMARKS]
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--write", action="store_true", help="write the table into tests/benchmarks/README.md")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    silence_telemetry()
    torch.set_num_threads(1)
    start, load = time.monotonic(), os.getloadavg()[0]
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        world = build(Path(folder))
        for name, run in zip(names, BENCHMARKS, strict=True):
            if not args.names or name in args.names:
                say(f"benchmark: {name}")
                rows += run(world)
        sample = world.describe()
    text = f"{table(rows)}\n\n{conditions(sample, ('torch', 'pillow', 'webdataset'), load)}"
    print(text)
    say(f"benchmark: {time.monotonic() - start:.0f} s")
    if args.write:
        write_section("`make bench-train`", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
