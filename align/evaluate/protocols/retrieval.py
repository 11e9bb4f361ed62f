"""Retrieval with several right items for a query, as published: recall@K.

A caption that is repeated is an item of its own, and only its own image is right, as in the published protocol. Other
positives, such as those of Crisscrossed Captions, come in the same form: for each query the indices of its right items.

Recall follows from the rank of the best right item, which is counted, not sorted: 1 + the number of items before it.
The similarities of a block of queries are in memory at a time, never the whole matrix.

Published code sorts (argsort, topk), so its order of equal similarities is that of the items or none at all. Here a
figure is its mean over all these orders, in closed form. Both agree where no wrong item ties with a right one, so on
embeddings of distinct items. They differ where captions of two images are equal, and where a model maps many items to
one point.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Direction, Score, recall_figure, scores, similarities_to
from align.formats.query_ranks import CUTS

#: Similarities in memory: 160 queries against 25,000 texts, where fewer would slow the product down.
SIMILARITIES_AT_ONCE = 4 << 20

Indices = NDArray[np.int64]


def best_ranks(
    queries: NDArray[np.floating],
    items: NDArray[np.floating],
    positives: Sequence[Indices],
    clusters: Sequence[Hashable],
    *,
    without_own: bool = False,
) -> Direction:
    """The rank of each query's best right item by cosine similarity.

    Args:
        queries: (num_queries, width), L2-normalised. Numbers of less than 32 bits are widened.
        items: (num_items, width), L2-normalised.
        positives: for each query the indices of its right items; an index that is repeated counts once. A query
            without a right item is not asked.
        clusters: (num_queries,) the independent unit of each query, whether it is asked or not.
        without_own: queries and items are the same, and no query is asked against itself.

    Raises:
        DataError: widths differ, an embedding is not finite, positives and clusters are not one for each query or name
            no item, or no query has any.
    """
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise DataError(f"queries {queries.shape} and items {items.shape} are no embeddings of one width")
    if len(clusters) != len(queries):
        raise DataError(f"{len(clusters)} clusters for {len(queries)} queries")
    wide, similarities = np.asarray(queries, dtype=np.float32), similarities_to(np.asarray(items, dtype=np.float32))
    query_of, item_of = _flat(positives, (len(queries), len(items)), without_own=without_own)
    asked, starts, num_correct = np.unique(query_of, return_index=True, return_counts=True)
    ranks, ties = np.empty(len(asked), dtype=np.int64), np.empty((len(asked), 2), dtype=np.int64)
    size = max(1, SIMILARITIES_AT_ONCE // len(items))
    for first in range(0, len(asked), size):
        some = slice(first, first + size)
        block = similarities(wide[asked[some]])
        if not np.isfinite(block).all():
            raise DataError("similarities are not finite: the model's embeddings are broken; train it again")
        if without_own:
            block[np.arange(len(block)), asked[some]] = -np.inf
        rows, begins = np.repeat(np.arange(len(block)), num_correct[some]), starts[some] - starts[first]
        found = block[rows, item_of[starts[first] :][: len(rows)]]
        best = np.maximum.reduceat(found, begins)
        right = np.add.reduceat((found == best[rows]).astype(np.int64), begins)
        wrong = np.count_nonzero(block == best[:, None], axis=1) - right
        ranks[some] = np.count_nonzero(block > best[:, None], axis=1) + wrong + 1
        ties[some] = np.stack([wrong, right], axis=1)
    units = [clusters[query] for query in asked]
    return Direction(ranks, num_correct.tolist(), len(items) - without_own, units, ties if ties[:, 0].any() else None)


def retrieval_scores(direction: Direction, *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`recall@1`, `recall@5` and `recall@10`. The interval resamples the direction's clusters."""
    figures = {f"recall@{k}": recall_figure([direction], [k]) for k in CUTS}
    return scores(figures, num_resamples=num_resamples, seed=seed)


def both_ways(
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    positives: tuple[Sequence[Indices], Sequence[Indices]],
    clusters: tuple[Sequence[Hashable], Sequence[Hashable]],
) -> dict[str, Direction]:
    """`image_to_text` and `text_to_image`.

    Args:
        image_embeds, text_embeds: see `best_ranks`.
        positives: the right texts of each image, and the right images of each text.
        clusters: of the images, and of the texts.

    Raises:
        DataError: as `best_ranks`.
    """
    of_image, of_text = positives
    return {
        "image_to_text": best_ranks(image_embeds, text_embeds, of_image, clusters[0]),
        "text_to_image": best_ranks(text_embeds, image_embeds, of_text, clusters[1]),
    }


def _flat(positives: Sequence[Indices], shape: tuple[int, int], *, without_own: bool) -> tuple[Indices, Indices]:
    """Each pair of a query and a right item once, by query. Raises DataError for what `best_ranks` lists."""
    num_queries, num_items = shape
    if len(positives) != num_queries or (without_own and num_queries != num_items):
        raise DataError(f"{len(positives)} lists of positives for {num_queries} queries and {num_items} items")
    query_of = np.repeat(np.arange(num_queries), [len(items) for items in positives])
    if not len(query_of):
        raise DataError("no query has a right item; is this the set that the positives belong to?")
    item_of = np.concatenate([np.asarray(items, dtype=np.int64) for items in positives])
    if not 0 <= item_of.min() <= item_of.max() < num_items:
        raise DataError(f"a right item has index {item_of.max()} (least {item_of.min()}) of {num_items} items")
    if without_own and (wrong := np.flatnonzero(query_of == item_of)).size:
        raise DataError(f"query {query_of[wrong[0]]} is its own right item, and is not asked against itself")
    return np.divmod(np.unique(query_of * num_items + item_of), num_items)
