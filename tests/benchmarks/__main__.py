"""Runs every benchmark, prints one table, and with `--write` puts it into the README beside this file."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from align.cli import silence_telemetry
from align.stage import say, write_text
from tests.benchmarks import filtering, preprocess, ranks, reading, training
from tests.benchmarks.measure import Comparison
from tests.benchmarks.world import World, build

README = Path(__file__).with_name("README.md")
BENCHMARKS: tuple[Callable[[World], list[Comparison]], ...] = (
    training.run, ranks.run, preprocess.run, filtering.run, reading.run,
)  # fmt: skip
PEERS = ("torch", "pillow", "duckdb", "pandas", "webdataset")
INTRODUCTION = """# Benchmarks

`make bench` measures these anew; `python -m tests.benchmarks --write` also writes this page. Every row is a ratio of
two rates that were measured side by side in one run: repetitions interleaved, medians, CPU seconds of single processes
with one computing thread each, so that other work on the machine matters little; where a row says so, wall-clock time.
Above 1 we are faster. The bracket is the smallest and the largest ratio of the repetitions.
"""


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
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {versions}"
    conditions = f"{sample}; {machine}; load {load:.1f} before and {os.getloadavg()[0]:.1f} after."
    page = f"{INTRODUCTION}\n{table(rows)}\n\n{conditions[0].upper()}{conditions[1:]}\n"
    print(page.removeprefix(INTRODUCTION).strip())
    say(f"benchmark: {time.monotonic() - start:.0f} s")
    if write:
        write_text(README, page)
    return 0


def table(rows: list[Comparison]) -> str:
    """The rows as Markdown."""
    lines = ["| what | against | ours | theirs | unit | ratio | notes |", "|---|---|--:|--:|---|--:|---|"]
    for row in rows:
        spread = f"**{row.ratio:.2f}** [{min(row.ratios):.2f}, {max(row.ratios):.2f}]"
        lines.append(
            f"| {row.what} | {row.peer} | {row.ours:,.0f} | {row.theirs:,.0f} | {row.unit} | {spread} | {row.note} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
