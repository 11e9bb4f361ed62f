"""What the benchmarks run on: part of the committed sample, brought by our own stages to where training reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.cli import main
from align.config import Params, load_params
from align.formats.filtered import decisions_digest
from align.formats.raw import iter_images, raw_shards
from align.formats.shards import read_manifest
from tests.support import ROOT
from tests.support.small_data import write_verdict

#: Of the archive's pages, spread evenly over it: enough for two batches, few enough to prepare in half a minute.
NUM_PAGES = 60


@dataclass(frozen=True)
class World:
    """Folders of a reduced run, and the values of params.yaml."""

    root: Path
    params: Params

    @property
    def shards(self) -> Path:
        return self.root / "shards"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    def raw_images(self) -> Iterator[bytes]:
        """Image files as they came from the web."""
        return (data for raw in raw_shards(self.root / "raw") for _, data in iter_images(raw))

    def describe(self) -> str:
        train = read_manifest(self.shards).splits["train"]
        return f"{NUM_PAGES} pages of data/sample: {train.num_images:,} training images, {train.num_pairs:,} pairs"


def build(root: Path) -> World:
    """Runs ingest, filter, shard and fit_tokenizer into an empty folder."""
    overrides = [
        f"ingest.max_pages={NUM_PAGES}", f"paths.archive={ROOT / 'data/sample/archive.warc.gz'}",
        f"paths.evaluation={root / 'no_evaluation_sets'}",  # none of them is in it, and they take a while
        f"paths.runtime={root / 'runtime'}", f"paths.policy={ROOT / 'data/policy'}",
        *(f"paths.{name}={root / name}" for name in ("raw", "filtered", "shards", "tokenizer", "reports")),
    ]  # fmt: skip
    (root / "no_evaluation_sets").mkdir()
    sets = [word for override in overrides for word in ("--set", override)]
    for verb in ("ingest", "filter", "shard", "validate_shards", "fit_tokenizer"):
        if verb == "shard":  # so few pages are no data for the gate
            write_verdict(root / "reports/quality", passed=True, data=decisions_digest(root / "filtered"))
        if main([verb, "--params", str(ROOT / "params.yaml"), *sets]) != 0:
            raise RuntimeError(f"align {verb} failed")
    return World(root, load_params(ROOT / "params.yaml", overrides))
