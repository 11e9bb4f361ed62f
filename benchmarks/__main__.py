"""Runs the benchmarks of the training half, prints one table, and with `--write` writes it into README.md.

Names of benchmarks as arguments run only these: `python -m benchmarks losses`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from align.cli import silence_telemetry
from align.config import load_params
from align.config.model import ModelConfig
from align.config.params import profile_overrides
from align.display.console import say
from benchmarks.image_tower import counted
from benchmarks.measure import Comparison
from benchmarks.page import conditions, table, write_section
from benchmarks.peers import run_beside_peers, version_of
from benchmarks.step_counts import counted_steps
from benchmarks.world import build
from tests.support import ROOT

#: Modules of this folder, each with `run(world) -> list[Comparison]`, in the order of the table -> whether they run in
#: the environment of the peers.
BENCHMARKS = {
    "losses": True, "training": False, "kept_memory": False, "open_clip_step": True, "towers": True, "ranks": False,
    "overlap": False, "resuming": False, "preprocess": False, "reading": False, "train_loader": False,
    "open_clip_loader": True,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no benchmark named {', '.join(sorted(unknown))}")
    silence_telemetry()
    torch.set_num_threads(1)
    start, load = time.monotonic(), os.getloadavg()[0]
    rows: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        world = build(Path(folder))
        for name in args.names or BENCHMARKS:
            say(f"benchmark: {name}")
            module = f"{__package__}.{name}"
            run = (
                functools.partial(run_beside_peers, module) if BENCHMARKS[name] else importlib.import_module(module).run
            )
            rows += run(world)
        sample = world.describe()
        sent = counted_steps(world) if not args.names or "overlap" in args.names else None
    theirs = ", ".join(f"{name} {version_of(name, 'peers_training')}" for name in ("open_clip_torch", "timm"))
    ours = conditions(sample, ("torch", "transformers", "pillow", "webdataset"), load)
    text = f"{table(rows)}\n\n{ours} Peers of training: {theirs}."
    if not args.names or "kept_memory" in args.names:
        large = load_params(ROOT / "params.yaml", profile_overrides("ablation", ROOT))
        text += f"\n\nB7 + Base, counted on the meta device, not timed:\n\n{counted(large.section(ModelConfig))}"
    if sent is not None:
        text += f"\n\nCounted with a stand-in for the network (`step_counts.py`), not timed:\n\n{sent}"
    print(text)
    say(f"benchmark: {time.monotonic() - start:.0f} s")
    if args.write:
        write_section("`make bench-train`", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
