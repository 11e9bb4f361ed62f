"""A suite whose set is fine-tuned on: pictures of four colours in folders, a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.cli import main
from tests.support import tiny_model
from tests.support.colours import COLOURS, square
from tests.support.suites import suite


def write(root: Path, **settings: Any) -> None:
    """Writes model, pictures and suite into a folder."""
    tiny_model.write(root)
    for split, first, number in (("train", 0, 6), ("test", 6, 5)):
        for colour in COLOURS:
            folder = root / "set" / split / colour
            folder.mkdir(parents=True)
            for shade in range(first, first + number):
                (folder / f"{shade}.jpg").write_bytes(square(colour, shade=3 * shade))
    entry = {
        "name": "colours",
        "path": str(root / "set"),
        "format": "folder",
        "tasks": ["zero_shot", "knn", "fine_tuning"],
    }
    suite(root, {**entry, "fine_tuning": {"preset": "small", **settings}})


def evaluate(root: Path, out: str, checkpoints: str = "checkpoints") -> int:
    """`align evaluate` of it; the exit code."""
    values = {"evaluation": root / "suite.yaml", "checkpoints": root / checkpoints}
    sets = [part for name, value in values.items() for part in ("--set", f"paths.{name}={value}")]
    more = ["--set", "store.features=null", "--set", "evaluate.num_resamples=200"]
    return main(["evaluate", *sets, *more, "--model", str(root / "model"), "--reports", str(root / out)])
