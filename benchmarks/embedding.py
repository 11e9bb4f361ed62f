"""Embedding an evaluation set beside the bare forward pass of the same model over pictures that are pixels already.

Seconds of the clock, for what is measured is whether reading, decoding and cropping hide behind the model: torch has
one thread, and the other cores are the decoders'. Random weights, which take as long as trained ones. Nothing is kept
on disk. Once at the demo's shape and size, and once with B0 + Mini at the paper's 289 px.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from align.config import load_params
from align.config.model import ModelConfig
from align.evaluate.embed import ModelTowers, embed_pictures
from align.formats.evaluation_sets.align_tar import load_set
from align.formats.model_folder import TOKENIZER_FOLDER
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.model.embedder import IMAGE_BATCH
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer, fit_wordpiece, save_tokenizer
from benchmarks.measure import Comparison, compare, interleaved
from tests.support import ROOT

SET = ROOT / "data/sample/evaluation/classes.json"
#: Name -> what differs from params.yaml, and how many pictures take some seconds.
SHAPES: dict[str, tuple[dict[str, object], int]] = {
    "the demo's model at 64 px": ({}, 1024),
    "B0 + Mini at 289 px": (
        {"image_tower": "B0", "text_tower": "Mini", "embed_width": 640, "resize_px": 346, "image_px": 289}, 192,
    ),
}  # fmt: skip
BAR = 0.95


def rows(repetitions: int) -> list[Comparison]:
    """A row for each shape."""
    return [_row(name, changes, number, repetitions) for name, (changes, number) in SHAPES.items()]


def _row(name: str, changes: dict[str, object], number: int, repetitions: int) -> Comparison:
    source = load_set(SET)
    source = source.select(range(min(number, len(source.images))))
    config = ModelConfig.model_validate(load_params(ROOT / "params.yaml").section(ModelConfig).model_dump() | changes)
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        _write_model(Path(folder), config)
        towers, network = ModelTowers(Path(folder)), load_model(Path(folder))
    crops = [towers.crop(picture) for _, picture in source.read()]
    batches = [to_pixels(np.stack(crops[at : at + IMAGE_BATCH])) for at in range(0, len(crops), IMAGE_BATCH)]

    @torch.inference_mode()
    def bare() -> None:
        for batch in batches:
            network.encode_image(batch)

    def here() -> None:
        embed_pictures(source, towers)

    ours, theirs = interleaved(here, bare, repetitions, time.perf_counter)
    return compare(
        f"embedding {len(crops):,} pictures, {name}", "the bare forward pass", "pictures / s", items=len(crops),
        ours_s=ours, theirs_s=theirs, note="from a tar; decoded and cropped in threads beside the model",
    )  # fmt: skip


def _write_model(folder: Path, config: ModelConfig) -> None:
    tokenizer = folder / TOKENIZER_FOLDER
    tokenizer.mkdir()
    save_tokenizer(
        fit_wordpiece(["a photo of a cat"], vocab_size=100, min_count=1), tokenizer, max_tokens=config.max_tokens
    )
    torch.manual_seed(0)
    save_model(
        DualEncoder(config, TextTokenizer.load(tokenizer, config.max_tokens).vocab_size), folder, stage="pretrain"
    )
