"""Writes `eccv_caption_figures.json`: what eccv_caption answers, on a set of its layout and on its own ground truth.

`pip install eccv_caption`, then `python -m tests.golden.eccv_caption_figures` with the project on PYTHONPATH; a minute.

The small set has the package's form: 100 images of five captions, ids out of order, and positives beyond the own ones,
up to 30 a query. The package's own ground truth (5,000 images) is compared by the test marked full.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.golden.embeddings import captioned

FILE = Path(__file__).with_suffix(".json")
Positives = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Small:
    """The small set: its ids, embeddings, and positives as (image to caption, caption to image)."""

    image_ids: NDArray[np.int64]
    text_ids: NDArray[np.int64]
    images: NDArray[np.float32]
    texts: NDArray[np.float32]
    image_of_text: NDArray[np.int64]
    own: tuple[Positives, Positives]
    more: tuple[Positives, Positives]


def small() -> Small:
    images, texts, image_of_text = captioned(100, 5, width=16, noise=1.5, seed=3)
    rng = np.random.default_rng(4)
    image_ids, text_ids = rng.permutation(1000)[:100], rng.permutation(10_000)[:500]
    right = np.zeros((100, 500), dtype=bool)
    right[image_of_text, np.arange(500)] = True
    own = _both(right, image_ids, text_ids)
    right[images @ texts.T > 0.55] = True  # what a model finds near is often right, as in ECCV Caption
    right[image_of_text[:29], np.arange(29)] = False
    queries = rng.random(100) < 0.5
    more = _both(right, image_ids, text_ids)
    asked = {int(one) for one in image_ids[queries]}
    return Small(
        image_ids,
        text_ids,
        images,
        texts,
        image_of_text,
        own,
        ({key: more[0][key] for key in more[0] if key in asked}, more[1]),
    )


def _both(
    right: NDArray[np.bool_], image_ids: NDArray[np.int64], text_ids: NDArray[np.int64]
) -> tuple[Positives, Positives]:
    of_image = {int(key): text_ids[row].tolist() for key, row in zip(image_ids, right, strict=True) if row.any()}
    of_text = {int(key): image_ids[row].tolist() for key, row in zip(text_ids, right.T, strict=True) if row.any()}
    return of_image, of_text


def ranked(
    similarity: NDArray[np.floating], query_ids: NDArray[np.int64], item_ids: NDArray[np.int64]
) -> dict[int, list[int]]:
    """Complete rankings, as the package wants them."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    return {int(query): item_ids[row].tolist() for query, row in zip(query_ids, order, strict=True)}


def small_figures() -> dict[str, Any]:
    """What the package answers for the small set."""
    from eccv_caption import Metrics

    of = small()
    metrics = Metrics()
    metrics.coco_ids = of.text_ids
    metrics.coco_gts = {"i2t": of.own[0], "t2i": of.own[1]}
    metrics.cxc_gts = metrics.eccv_gts = {"i2t": of.more[0], "t2i": of.more[1]}
    similarity = of.images @ of.texts.T
    return all_figures(
        metrics, ranked(similarity, of.image_ids, of.text_ids), ranked(similarity.T, of.text_ids, of.image_ids)
    )


def all_figures(metrics: Any, i2t: dict[int, list[int]], t2i: dict[int, list[int]]) -> dict[str, Any]:
    """All metrics of the package but Plausible Match, whose positives it does not bring."""
    targets = (
        "coco_1k_recalls",
        "coco_5k_recalls",
        "cxc_recalls",
        "eccv_recalls",
        "eccv_r1",
        "eccv_map_at_r",
        "eccv_rprecision",
    )
    found = metrics.compute_all_metrics(i2t, t2i, target_metrics=targets, Ks=(1, 5, 10), verbose=False)
    return {name: {way: float(value) for way, value in ways.items()} for name, ways in found.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps({"eccv_caption": version("eccv-caption"), "small": small_figures()}, indent=1) + "\n")
