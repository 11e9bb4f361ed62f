"""Runs the benchmarks and prints one table; names as arguments run only these: `python -m benchmarks losses`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from align.cli import silence_telemetry
from align.config import load_params
from align.display.console import say
from benchmarks.measure import Comparison, conditions, table
from benchmarks.world import World, build
from tests.support import ROOT
from tests.support.peers import build_beside_us

#: Modules of this folder, each with `run(world) -> list[Comparison]`, in the order of the table -> whether open_clip
#: runs in its process.
BENCHMARKS = {
    "losses": True, "step": True, "loader": True,
    "extraction": False, "download": False, "filtering": False,
    "recall": False, "vectors": False,
}  # fmt: skip
_PACKAGES = ("torch", "transformers", "pillow", "duckdb", "pandas", "pycurl", "resiliparse", "faiss-cpu")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--beside", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    silence_telemetry()
    if args.beside:
        world = World(args.beside, load_params(ROOT / "params.yaml", []))
        print(json.dumps([dataclasses.asdict(row) for name in args.names for row in run(name, world)]))
        return 0
    start, load = time.monotonic(), os.getloadavg()[0]
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        world = build(Path(folder))
        for name in args.names or BENCHMARKS:
            say(f"benchmark: {name}")
            rows += (run_beside_open_clip if BENCHMARKS[name] else run)(name, world)
        sample = world.describe()
    print(f"{table(rows)}\n\n{conditions(sample, _PACKAGES, load)}")
    say(f"benchmark: {time.monotonic() - start:.0f} s")
    return 0


def run(name: str, world: World) -> list[Comparison]:
    """The rows of a benchmark."""
    rows: list[Comparison] = importlib.import_module(f"{__package__}.{name}").run(world)
    return rows


def run_beside_open_clip(name: str, world: World) -> list[Comparison]:
    """The same in a process that has open_clip beside our packages, on the same torch.

    Raises:
        RuntimeError: it failed; its last words.
    """
    command = [sys.executable, "-m", __package__, name, "--beside", str(world.root)]
    quiet = {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(build_beside_us()))), "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(world.root),
    }  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed beside open_clip: {done.stdout[-1000:]}")
    rows = json.loads(done.stdout.splitlines()[-1])
    return [Comparison(**row | {"ratios": tuple(row["ratios"])}) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
