"""What the benchmarks run on: part of the committed sample, brought by our own stages to where training reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from align.config import Params, load_params
from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.config.fit_tokenizer import FitTokenizerConfig
from align.config.ingest import IngestConfig
from align.config.model import ModelConfig
from align.config.shard import ShardConfig
from align.filter import filter_pairs
from align.fit_tokenizer import fit_tokenizer
from align.ingest import ingest
from align.pairs.layout import iter_images, raw_shards
from align.pairs.shards import read_manifest
from align.shard import shard
from tests.small_data import write_verdict

ROOT = Path(__file__).parents[2]

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
    params = load_params(ROOT / "params.yaml", [f"ingest.max_pages={NUM_PAGES}"])
    raw, filtered, reports = root / "raw", root / "filtered", root / "reports"
    ingest(params.section(IngestConfig), ROOT / "data/sample/archive.warc.gz", raw)
    no_sets = root / "no_evaluation_sets"  # training images are none of them anyway; reading them takes a while
    filter_pairs(
        params.section(FilterConfig), params.section(EngineConfig), raw, no_sets, filtered, reports / "filter"
    )  # fmt: skip
    quality = write_verdict(reports / "quality", passed=True)
    shard(
        params.section(ShardConfig), raw=raw, filtered=filtered, quality=quality,
        out=root / "shards", reports=reports / "shard",
    )  # fmt: skip
    fit_tokenizer(
        params.section(FitTokenizerConfig), max_tokens=params.section(ModelConfig).max_tokens, shards=root / "shards",
        out=root / "tokenizer", reports=reports / "fit_tokenizer",
    )  # fmt: skip
    return World(root, params)
