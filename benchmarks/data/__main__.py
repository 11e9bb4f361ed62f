"""Runs the benchmarks of the data half, prints one table, and with `--write` puts it into the README of the benchmarks.

Names of benchmarks as arguments run only these: `python -m benchmarks.data extraction sharding`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

from align.cli import silence_telemetry
from align.display.console import say
from benchmarks.measure import Comparison
from benchmarks.page import conditions, table, write_section
from benchmarks.world import build

#: Modules of this folder, each with `run(world) -> list[Comparison]`; in the order of the table.
NAMES = ("extraction", "download", "dead_hosts", "filtering", "sharding")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    silence_telemetry()
    start, load = time.monotonic(), os.getloadavg()[0]
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        world = build(Path(folder))
        for name in args.names or NAMES:
            say(f"benchmark: {name}")
            rows += importlib.import_module(f"benchmarks.data.{name}").run(world)
        sample = world.describe()
    text = f"{table(rows)}\n\n{conditions(sample, ('duckdb', 'pandas', 'pyspark', 'pycurl', 'resiliparse'), load)}"
    print(text)
    say(f"benchmark: {time.monotonic() - start:.0f} s")
    if args.write:
        write_section("`make bench-data`", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
