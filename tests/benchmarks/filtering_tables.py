"""Synthesised tables in the form that the filter measures texts and pictures into; the same ones every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.pairs.layout import SUCCESS
from align.pairs.signals import ngrams

NUM_WORDS = 30_000


def synthesise(folder: Path, num_pairs: int) -> None:
    """Texts of 1 to 24 words by Zipf's law; four pairs to three images, some texts under many images."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, 25, num_pairs)
    ranks = np.minimum(random.zipf(1.2, lengths.sum()), NUM_WORDS)
    words = [[f"w{rank}" for rank in part] for part in np.split(ranks, np.cumsum(lengths)[:-1])]
    for row in random.choice(num_pairs, num_pairs // 20, replace=False):
        words[row] = ["click", "to", "enlarge", str(row % 500)]
    num_images = num_pairs * 3 // 4
    image_ids = [f"{number:064x}" for number in random.integers(0, num_images, num_pairs)]
    keys = [f"{row:09d}" for row in range(num_pairs)]
    side = [int(number) for number in random.integers(100, 1200, 2 * num_images)]
    pairs = {
        "shard": ["00000"] * num_pairs, "key": keys, "text": [" ".join(row) for row in words],
        "num_words": [len(row) for row in words], "ngrams": [ngrams(row) for row in words],
        "is_filename": (random.random(num_pairs) < 0.02).tolist(), "url": keys,
        "status": [SUCCESS] * num_pairs, "image_id": image_ids, "image_key": keys,
        "original_width": pa.nulls(num_pairs, pa.int32()), "original_height": pa.nulls(num_pairs, pa.int32()),
    }  # fmt: skip
    images = {
        "image_id": [f"{number:064x}" for number in range(num_images)], "shard": ["00000"] * num_images,
        "stored_width_px": side[:num_images], "stored_height_px": side[num_images:],
        "decodable": (random.random(num_images) < 0.99).tolist(),
        "num_evaluation_sets": (random.random(num_images) < 0.001).astype(int).tolist(),
    }  # fmt: skip
    nsfw = {"image_id": images["image_id"], "nsfw_score": random.random(num_images) ** 8}
    for name, columns in (("pairs", pairs), ("measured_images", images), ("nsfw", nsfw)):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
