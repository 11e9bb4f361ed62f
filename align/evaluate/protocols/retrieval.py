"""Retrieval with several right items for a query, as published: recall@K, R-precision and mAP@R.

A caption that is repeated is an item of its own, and only its own image is right, as in the published protocol. Other
positives, such as those of ECCV Caption and of Crisscrossed Captions, come in the same form: for each query the indices
of its right items.

Everything follows from the rank of each right item, which is counted, not sorted: 1 + the number of items before it.
The similarities of a block of queries are in memory at a time, `BLOCK_BYTES` of them, never the whole matrix.

Ties count against the model, as in `recall`: a wrong item with the same similarity ranks before a right one. Published
code sorts (argsort, topk), so its order of equal similarities is that of the items or none at all. Both agree where no
wrong item ties with a right one, so on embeddings of distinct items. They differ where captions of two images are
equal, and where a model maps many items to one point. `ties="for"` ranks right items first: the two runs bound what any
sort gives.

Sources: Musgrave et al., A Metric Learning Reality Check (2020; R-precision, mAP@R); Chun et al., ECCV Caption (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Direction, Figure, Score, scores, similarities_to
from align.formats.query_ranks import CUTS
from align.statistics.intervals import Scored

#: Of similarities in memory at once: 160 queries against 25,000 texts, where fewer would slow the product down.
BLOCK_BYTES = 16 << 20

Indices = NDArray[np.int64]
Ties = Literal["against", "for"]


@dataclass(frozen=True)
class PositiveRanks:
    """Where each right item of each query stands. Queries without a right item were not asked.

    Attributes:
        queries: (num_asked,) index of each query that was asked, ascending.
        starts: (num_asked + 1,) where the ranks of each of them start.
        ranks: (num_positives,) from 1, ascending within a query.
        num_items: items that each query was asked against.
    """

    queries: Indices
    starts: Indices
    ranks: Indices
    num_items: int

    @property
    def num_positives(self) -> Indices:
        """(num_asked,) the R of each query."""
        return np.diff(self.starts)

    @property
    def first(self) -> Indices:
        """(num_asked,) the rank of the best right item."""
        return self.ranks[self.starts[:-1]]

    def recall(self, k: int) -> NDArray[np.float64]:
        """(num_asked,) 1.0 if a right item is among the first k."""
        return (self.first <= k).astype(np.float64)

    def r_precision(self) -> NDArray[np.float64]:
        """(num_asked,) the share of right items among the first R, in [0, 1]."""
        return self._sum((self.ranks <= self._each(self.num_positives)).astype(np.float64)) / self.num_positives

    def map_at_r(self) -> NDArray[np.float64]:
        """(num_asked,) in [0, 1]: precision at each right item among the first R, summed and divided by R."""
        order = np.arange(len(self.ranks)) - self._each(self.starts[:-1]) + 1
        precision = np.where(self.ranks <= self._each(self.num_positives), order / self.ranks, 0.0)
        return self._sum(precision) / self.num_positives

    def direction(self, clusters: Sequence[Hashable]) -> Direction:
        """The same for `recall` and `mean_recall`; `clusters`: (num_queries,) of all queries, asked or not.

        Raises:
            DataError: there are fewer clusters than queries.
        """
        if len(clusters) <= self.queries[-1]:
            raise DataError(f"{len(clusters)} clusters, but query {self.queries[-1]} was asked")
        asked = [clusters[query] for query in self.queries]
        return Direction(self.first, self.num_positives.tolist(), self.num_items, asked)

    def chances(self) -> tuple[float, float]:
        """R-precision and mAP@R of a random order.

        At rank r stands a right item with probability R / N; before it, (r - 1)(R - 1) / (N - 1) others are expected.
        """
        of_r: dict[int, float] = {}
        for right in np.unique(self.num_positives).tolist():
            rank = np.arange(1, right + 1)
            others = (rank - 1) * (right - 1) / max(self.num_items - 1, 1)
            of_r[right] = float(np.mean((1 + others) / rank)) * right / self.num_items
        expected = float(np.mean([of_r[right] for right in self.num_positives.tolist()]))
        return float(np.mean(self.num_positives)) / self.num_items, expected

    def _each(self, values: Indices) -> Indices:
        return np.repeat(values, self.num_positives)

    def _sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total: NDArray[np.float64] = np.add.reduceat(values, self.starts[:-1])
        return total


@dataclass(frozen=True)
class Captioned:
    """Embeddings of images, and of the captions that were written for them.

    Attributes:
        images: (num_images, width), L2-normalised.
        texts: (num_texts, width), L2-normalised.
        image_of_text: (num_texts,) index of each caption's image.
        clusters: (num_images,) the independent unit of each image, most often its index.
    """

    images: NDArray[np.floating]
    texts: NDArray[np.floating]
    image_of_text: Sequence[int]
    clusters: Sequence[Hashable]

    def directions(self, ties: Ties = "against") -> dict[str, Direction]:
        """Both directions, each caption right for its own image only. Raises DataError as `positive_ranks`."""
        found = both_ways(self.images, self.texts, own_positives(self.image_of_text, len(self.images)), ties=ties)
        return {
            "image_to_text": found["image_to_text"].direction(self.clusters),
            "text_to_image": found["text_to_image"].direction([self.clusters[image] for image in self.image_of_text]),
        }


def own_positives(image_of_text: Sequence[int], num_images: int) -> tuple[list[Indices], list[Indices]]:
    """The published positives: an image's own texts, and a text's own image.

    Args:
        image_of_text: (num_texts,) index of the image that each text was written for.
        num_images: images without a text are no queries.

    Returns:
        For each image the indices of its texts; for each text that of its image.

    Raises:
        DataError: a text names an image that is not there.
    """
    images = np.asarray(image_of_text, dtype=np.int64)
    if len(images) and not 0 <= images.min() <= images.max() < num_images:
        raise DataError(f"a text belongs to image {images.max()} (least {images.min()}) of {num_images} images")
    order = np.argsort(images, kind="stable")
    return np.split(order, np.searchsorted(images[order], np.arange(1, num_images))), list(images[:, np.newaxis])


def positive_ranks(
    queries: NDArray[np.floating],
    items: NDArray[np.floating],
    positives: Sequence[Indices],
    *,
    without_own: bool = False,
    ties: Ties = "against",
) -> PositiveRanks:
    """The rank of each right item by cosine similarity.

    Args:
        queries: (num_queries, width), L2-normalised. Numbers of less than 32 bits are widened.
        items: (num_items, width), L2-normalised.
        positives: for each query the indices of its right items; an index that is repeated counts once. A query
            without a right item is not asked.
        without_own: queries and items are the same, and no query is asked against itself.
        ties: which of equal similarities rank first: wrong items ("against" the model) or right ones.

    Raises:
        DataError: widths differ, an embedding is not finite, the positives are not one list for each query or name no
            item, or no query has any.
    """
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise DataError(f"queries {queries.shape} and items {items.shape} are no embeddings of one width")
    wide, similarities = np.asarray(queries, dtype=np.float32), similarities_to(np.asarray(items, dtype=np.float32))
    shape = (len(queries), len(items))
    return _ranked(lambda rows: similarities(wide[rows]), shape, positives, without_own=without_own, ties=ties)


def retrieval_scores(
    ranks: PositiveRanks, clusters: Sequence[Hashable], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """`recall@1`, `recall@5`, `recall@10`, `r_precision` and `map_at_r`.

    The interval resamples images: the captions of one image succeed and fail together.

    Args:
        clusters: (num_queries,) the image of each query, whether it was asked or not.
    """
    direction = ranks.direction(clusters)
    by_r, by_map = ranks.chances()
    figures = {f"recall@{k}": Figure([direction.hits(k)], direction.chance(k)) for k in CUTS}
    figures["r_precision"] = Figure([Scored(ranks.r_precision(), direction.clusters)], by_r)
    figures["map_at_r"] = Figure([Scored(ranks.map_at_r(), direction.clusters)], by_map)
    return scores(figures, num_resamples=num_resamples, seed=seed)


def both_ways(
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    positives: tuple[Sequence[Indices], Sequence[Indices]],
    *,
    ties: Ties = "against",
) -> Mapping[str, PositiveRanks]:
    """`image_to_text` and `text_to_image`, from the right texts of each image and the right images of each text."""
    of_image, of_text = positives
    return {
        "image_to_text": positive_ranks(image_embeds, text_embeds, of_image, ties=ties),
        "text_to_image": positive_ranks(text_embeds, image_embeds, of_text, ties=ties),
    }


def _ranked(
    similarities: Callable[[Indices], NDArray[np.floating]],
    shape: tuple[int, int],
    positives: Sequence[Indices],
    *,
    without_own: bool,
    ties: Ties,
) -> PositiveRanks:
    num_items = shape[1]
    query_of, item_of = _flat(positives, shape, without_own=without_own)
    queries, starts = np.unique(query_of, return_index=True)
    starts = np.append(starts, len(query_of))
    ranks = np.empty(len(query_of), dtype=np.int64)
    size = max(1, BLOCK_BYTES // (4 * num_items))
    for first in range(0, len(queries), size):
        asked = queries[first : first + size]
        block = similarities(asked)
        if not np.isfinite(block).all():
            raise DataError("similarities are not finite: the model's embeddings are broken; train it again")
        if without_own:
            block[np.arange(len(asked)), asked] = -np.inf
        some = slice(starts[first], starts[first + len(asked)])
        ranks[some] = _ranks_in_block(block, np.searchsorted(asked, query_of[some]), item_of[some], ties)
    return PositiveRanks(queries, starts, ranks, num_items - without_own)


def _flat(positives: Sequence[Indices], shape: tuple[int, int], *, without_own: bool) -> tuple[Indices, Indices]:
    """Each pair of a query and a right item once, by query. Raises DataError for what `positive_ranks` lists."""
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


def _ranks_in_block(block: NDArray[np.floating], rows: Indices, items: Indices, ties: Ties) -> Indices:
    """Ranks of right items, ascending in each row; `rows` is ascending."""
    found = block[rows, items]
    order = np.lexsort((-found, rows))  # the best item of each row first; rows stay where they are
    found = found[order]
    at_least = np.greater_equal if ties == "against" else np.greater
    before = [np.count_nonzero(at_least(block[row], value)) for row, value in zip(rows, found, strict=True)]
    # Of these the right ones: up to the last of equal values, or to the first of them.
    position = np.arange(len(rows))
    changes = (np.diff(rows) != 0) | (np.diff(found) != 0)
    if ties == "against":
        ends = np.append(np.where(changes, position[1:], len(rows)), len(rows))
        right = np.minimum.accumulate(ends[::-1])[::-1]
    else:
        right = np.maximum.accumulate(np.append(0, np.where(changes, position[1:], 0)))
    starts = np.searchsorted(rows, rows)
    wrong_before = np.asarray(before, dtype=np.int64) - (right - starts)
    return np.asarray(wrong_before + position - starts + 1, dtype=np.int64)
