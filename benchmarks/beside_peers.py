"""Runs in the environment of training's peers: MODULE FOLDER; the last line is the rows of the module as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import torch

from align.config import load_params
from benchmarks.world import ROOT, World


def main() -> None:
    module, folder = sys.argv[1:]
    torch.set_num_threads(1)
    world = World(Path(folder), load_params(ROOT / "params.yaml", []))
    print(json.dumps([dataclasses.asdict(row) for row in importlib.import_module(module).run(world)]))


if __name__ == "__main__":
    main()
