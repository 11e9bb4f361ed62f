"""Labelled queries: a text, or an image with a text added or taken away (paper section 7), judged by the items' labels.

The paper shows such queries and gives no figures. Where somebody has labelled which items are right, the share of right
ones among the first K is a figure. The interval resamples queries, the only independent unit: all share one gallery.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Figure, Score, scores
from align.statistics.intervals import Scored

#: Items that are judged: the page's first row, and the paper's figures show no more.
FIRST = 10


def compose(
    image_embeds: NDArray[np.floating], text_embeds: NDArray[np.floating], weights: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Image + weight x text, normalised again.

    Args:
        image_embeds: (num_queries, width), L2-normalised.
        text_embeds: (num_queries, width), L2-normalised.
        weights: (num_queries,) 2 in the paper for image + text, -2 for image - text.

    Returns:
        (num_queries, width) float32.

    Raises:
        DataError: shapes differ, or image and text cancel each other out.
    """
    if image_embeds.shape != text_embeds.shape or weights.shape != image_embeds.shape[:1]:
        raise DataError(f"{image_embeds.shape} images, {text_embeds.shape} texts, {weights.shape} weights")
    total = image_embeds.astype(np.float64) + weights[:, np.newaxis] * text_embeds
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        broken = int(np.argmin(norms > 1e-6))
        raise DataError(f"query {broken}: image and text cancel each other out, or are not finite")
    return np.asarray(total / norms, dtype=np.float32)


def precision_scores(
    query_embeds: NDArray[np.floating],
    item_embeds: NDArray[np.floating],
    right: Mapping[str, NDArray[np.bool_]],
    own: NDArray[np.int64] | None = None,
    *,
    k: int = FIRST,
    num_resamples: int,
    seed: int,
) -> dict[str, Score]:
    """`LABEL/precision@K` for each kind of label: the share of the first K items that have it.

    For image - text one label is the text that was taken away: the lower, the better. Of items that tie for the last
    places, the share that has it counts.

    Args:
        query_embeds: (num_queries, width), L2-normalised.
        item_embeds: (num_items, width), L2-normalised.
        right: name of a label -> (num_queries, num_items) whether an item has it for a query.
        own: (num_queries,) index of each query's own image, which is no item of it; -1 for none.
        k: fewer are judged where there are fewer items.

    Raises:
        DataError: shapes do not fit, a similarity is not finite, or there is no query.
    """
    shape = (len(query_embeds), len(item_embeds))
    if query_embeds.ndim != 2 or item_embeds.ndim != 2 or query_embeds.shape[1] != item_embeds.shape[1]:
        raise DataError(f"queries {query_embeds.shape} and items {item_embeds.shape} are no embeddings of one width")
    if wrong := [name for name, labels in right.items() if labels.shape != shape]:
        raise DataError(f"labels {wrong[0]}: {right[wrong[0]].shape}, but there are {shape} queries and items")
    excluded = np.full(shape[0], -1) if own is None else own
    if excluded.shape != shape[:1] or not (excluded < shape[1]).all():
        raise DataError(f"{len(excluded)} own images for {shape[0]} queries and {shape[1]} items")
    figures: dict[str, Figure] = {}
    for name, labels in right.items():
        shares: list[float] = []
        chances: list[float] = []
        for query, embed, labelled, own_item in zip(range(shape[0]), query_embeds, labels, excluded, strict=True):
            kept = np.arange(shape[1]) != own_item
            near, judged = (item_embeds @ embed)[kept], labelled[kept]
            if not np.isfinite(near).all() or not len(near):
                raise DataError(f"query {query}: no item, or its similarities are not finite")
            last = np.partition(-near, number := min(k, len(near)) - 1)[number] * -1
            sure, level = judged[near > last], judged[near == last]
            shares.append(float(sure.sum() + (number + 1 - len(sure)) * level.mean()) / (number + 1))
            chances.append(float(judged.mean()))
        figures[f"{name}/precision@{k}"] = Figure(
            [Scored(np.array(shares), range(shape[0]))], float(np.mean(chances)) if chances else 0.0
        )
    return scores(figures, num_resamples=num_resamples, seed=seed)
