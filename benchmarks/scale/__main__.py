"""Runs the stages of the data at several sizes; says how each grows, and what the paper's number of pairs would take.

With `--write` the table and the plot go to docs/scale.md. Sizes as arguments: `python -m benchmarks.scale 100000`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from align.cli import silence_telemetry
from align.display.console import say
from benchmarks.data.filtering_tables import synthesise
from benchmarks.scale.page import plot, table, write
from benchmarks.scale.steps import STAGES, WITH_PICTURES, Measured, measure, tables_of_addresses, tiny_picture

SIZES = (100_000, 1_000_000, 10_000_000)
#: Of pairs with pictures.
TIMES_FEWER = 10


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int, default=SIZES, help="numbers of pairs")
    parser.add_argument("--write", action="store_true", help="write the table and the plot into docs/")
    args = parser.parse_args(words)
    silence_telemetry()
    rows: list[Measured] = []
    for num_pairs in args.sizes:
        rows += run(num_pairs, STAGES, with_pictures=False)
    for num_pairs in args.sizes:
        rows += run(num_pairs // TIMES_FEWER, WITH_PICTURES, with_pictures=True)
    print(table(rows))
    if args.write:
        write(rows)
        plot(rows)
    return 0


def run(num_pairs: int, stages: Iterable[str], *, with_pictures: bool) -> list[Measured]:
    """The stages over synthesised pairs, one after another."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="align-scale-") as name:
        folder, start = Path(name), time.monotonic()
        synthesise(folder, num_pairs, picture=tiny_picture if with_pictures else None)
        tables_of_addresses(folder)
        if with_pictures:
            measure("filter", folder, num_pairs)
        say(f"benchmark: {num_pairs:,} pairs made in {time.monotonic() - start:.0f} s")
        for stage in stages:
            row = measure(stage, folder, num_pairs)
            rows.append(row)
            say(
                f"benchmark: {num_pairs:,} pairs, {stage}: driver {row.driver_s:.1f} s, {row.driver_bytes >> 20:,} "
                f"MiB; {row.num_tasks:,} tasks {row.tasks_s:.1f} s, {row.task_bytes >> 20:,} MiB; {row.wrote:,} bytes"
            )
            shutil.rmtree(folder / "ingest", ignore_errors=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
