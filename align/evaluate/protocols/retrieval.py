"""Retrieval with several right items for a query, as published: recall@K, R-precision and mAP@R.

A caption that is repeated is an item of its own, and only its own image is right, as in the published protocol. Other
positives, such as those of ECCV Caption and of Crisscrossed Captions, come in the same form: for each query the indices
of its right items.

Everything follows from the rank of each right item, which is counted, not sorted: 1 + the number of items before it.
The similarities of a block of queries are in memory at a time, `BLOCK_BYTES` of them, never the whole matrix.

Published code sorts (argsort, topk), so its order of equal similarities is that of the items or none at all. Here a
figure is its mean over all these orders, in closed form, and both ends stand beside it, which bound what any sort
gives. All agree where no wrong item ties with a right one, so on embeddings of distinct items. They differ where
captions of two images are equal, and where a model maps many items to one point.

Sources: Musgrave et al., A Metric Learning Reality Check (2020; R-precision, mAP@R); Chun et al., ECCV Caption (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Direction, Figure, Score, recall_figure, scores, similarities_to
from align.formats.query_ranks import CUTS
from align.statistics.intervals import Scored

#: Of similarities in memory at once: 160 queries against 25,000 texts, where fewer would slow the product down.
BLOCK_BYTES = 16 << 20

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class PositiveRanks:
    """Where each right item of each query stands. Queries without a right item were not asked.

    Attributes:
        queries: (num_asked,) index of each query that was asked, ascending.
        starts: (num_asked + 1,) where the ranks of each of them start.
        ranks: (num_positives,) from 1, ascending within a query; wrong items of equal similarity rank before.
        num_items: items that each query was asked against.
        wrong_ties: (num_positives,) the number of these wrong items; None: nothing ties.
    """

    queries: Indices
    starts: Indices
    ranks: Indices
    num_items: int
    wrong_ties: Indices | None = None

    @property
    def num_positives(self) -> Indices:
        """(num_asked,) the R of each query."""
        return np.diff(self.starts)

    @property
    def first(self) -> Indices:
        """(num_asked,) the rank of the best right item."""
        return self.ranks[self.starts[:-1]]

    def recall(self, k: int) -> NDArray[np.float64]:
        """(num_asked,) 1.0 if a right item is among the first k; in ties the share of their orders."""
        return self.direction(range(self.queries[-1] + 1)).hits(k).values

    def r_precision(self) -> NDArray[np.float64]:
        """(num_asked,) the share of right items among the first R, in [0, 1]."""
        r = self._each(self.num_positives)
        within = (self.ranks <= r).astype(np.float64)
        if (tied := self._tied()) is not None:
            within = np.where(tied.wrong, tied.places(r) / tied.number, within)
        return self._sum(within) / self.num_positives

    def map_at_r(self) -> NDArray[np.float64]:
        """(num_asked,) in [0, 1]: precision at each right item among the first R, summed and divided by R."""
        r, order = self._each(self.num_positives), self._order()
        precision = np.where(self.ranks <= r, order / self.ranks, 0.0)
        if (tied := self._tied()) is not None:
            # At the j-th place of a tie stands a right item with probability right / number. It has all right items
            # before the tie in front of it, and (j - 1)(right - 1) / (number - 1) of those in it. This is the sum over
            # j, a share for each right item: of 1 / rank it is a difference of harmonic numbers.
            harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, self.num_items + 1)))
            places = tied.places(r)
            inverse = harmonic[tied.above + places] - harmonic[tied.above]
            others = (tied.right - 1) / np.maximum(tied.number - 1, 1)
            total = (tied.right_above + 1) * inverse + others * (places - (tied.above + 1) * inverse)
            precision = np.where(tied.wrong, total / tied.number, precision)
        return self._sum(precision) / self.num_positives

    def ends(self) -> tuple[PositiveRanks, PositiveRanks]:
        """The same with every tie against the model, and with every tie for it."""
        wrong = 0 if self.wrong_ties is None else self.wrong_ties
        return replace(self, wrong_ties=None), replace(self, ranks=self.ranks - wrong, wrong_ties=None)

    def direction(self, clusters: Sequence[Hashable]) -> Direction:
        """The same for `recall` and `mean_recall`; `clusters`: (num_queries,) of all queries, asked or not.

        Raises:
            DataError: there are fewer clusters than queries.
        """
        if len(clusters) <= self.queries[-1]:
            raise DataError(f"{len(clusters)} clusters, but query {self.queries[-1]} was asked")
        asked, ties = [clusters[query] for query in self.queries], None
        if (tied := self._tied()) is not None:
            ties = np.stack([tied.wrong, tied.right], axis=1)[self.starts[:-1]]
        return Direction(self.first, self.num_positives.tolist(), self.num_items, asked, ties)

    def chances(self) -> tuple[float, float]:
        """R-precision and mAP@R of a random order."""
        wrong = self.num_items - self._each(self.num_positives)
        level = replace(self, ranks=wrong + self._order(), wrong_ties=wrong)  # all items tie
        return float(level.r_precision().mean()), float(level.map_at_r().mean())

    def _order(self) -> Indices:
        """(num_positives,) 1 for a query's best right item, 2 for the next, and so on."""
        return np.arange(len(self.ranks)) - self._each(self.starts[:-1]) + 1

    def _tied(self) -> _Tied | None:
        """What ties with each right item; None: no wrong item ties with one."""
        if self.wrong_ties is None or not self.wrong_ties.any():
            return None
        order = self._order()
        behind = self.ranks - order  # of wrong items, the same within a tie and larger in the next
        new = (order == 1) | (np.diff(behind, prepend=-1) != 0) | (np.diff(self.wrong_ties, prepend=-1) != 0)
        sizes = np.diff(np.append(np.flatnonzero(new), len(order)))
        right_above = np.repeat(order[new] - 1, sizes)
        return _Tied(self.wrong_ties, np.repeat(sizes, sizes), behind - self.wrong_ties + right_above, right_above)

    def _each(self, values: Indices) -> Indices:
        return np.repeat(values, self.num_positives)

    def _sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        total: NDArray[np.float64] = np.add.reduceat(values, self.starts[:-1])
        return total


@dataclass(frozen=True)
class _Tied:
    """Of each right item, (num_positives,): wrong and right items of its similarity, and all and right ones above.

    Where nothing wrong ties, several similarities may be taken for one.
    """

    wrong: Indices
    right: Indices
    above: Indices
    right_above: Indices

    @property
    def number(self) -> Indices:
        return self.wrong + self.right

    def places(self, k: Indices) -> Indices:
        """How many of its similarity are among the first k."""
        places: Indices = np.clip(k - self.above, 0, self.number)
        return places


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

    def directions(self) -> dict[str, Direction]:
        """Both directions, each caption right for its own image only. Raises DataError as `positive_ranks`."""
        found = both_ways(self.images, self.texts, own_positives(self.image_of_text, len(self.images)))
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
) -> PositiveRanks:
    """The rank of each right item by cosine similarity.

    Args:
        queries: (num_queries, width), L2-normalised. Numbers of less than 32 bits are widened.
        items: (num_items, width), L2-normalised.
        positives: for each query the indices of its right items; an index that is repeated counts once. A query
            without a right item is not asked.
        without_own: queries and items are the same, and no query is asked against itself.

    Raises:
        DataError: widths differ, an embedding is not finite, the positives are not one list for each query or name no
            item, or no query has any.
    """
    if queries.ndim != 2 or items.ndim != 2 or queries.shape[1] != items.shape[1]:
        raise DataError(f"queries {queries.shape} and items {items.shape} are no embeddings of one width")
    wide, similarities = np.asarray(queries, dtype=np.float32), similarities_to(np.asarray(items, dtype=np.float32))
    shape = (len(queries), len(items))
    return _ranked(lambda rows: similarities(wide[rows]), shape, positives, without_own=without_own)


def retrieval_scores(
    ranks: PositiveRanks, clusters: Sequence[Hashable], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """`recall@1`, `recall@5`, `recall@10`, `r_precision` and `map_at_r`.

    The interval resamples images: the captions of one image succeed and fail together.

    Args:
        clusters: (num_queries,) the image of each query, whether it was asked or not.
    """
    direction = ranks.direction(clusters)
    figures = {f"recall@{k}": recall_figure([direction], [k]) for k in CUTS}
    for name, chance in zip(("r_precision", "map_at_r"), ranks.chances(), strict=True):
        own, against, best = (getattr(one, name)() for one in (ranks, *ranks.ends()))
        ends = None if direction.ties is None else (float(against.mean()), float(best.mean()))
        figures[name] = Figure([Scored(own, direction.clusters)], chance, ends)
    return scores(figures, num_resamples=num_resamples, seed=seed)


def both_ways(
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    positives: tuple[Sequence[Indices], Sequence[Indices]],
) -> Mapping[str, PositiveRanks]:
    """`image_to_text` and `text_to_image`, from the right texts of each image and the right images of each text."""
    of_image, of_text = positives
    return {
        "image_to_text": positive_ranks(image_embeds, text_embeds, of_image),
        "text_to_image": positive_ranks(text_embeds, image_embeds, of_text),
    }


def _ranked(
    similarities: Callable[[Indices], NDArray[np.floating]],
    shape: tuple[int, int],
    positives: Sequence[Indices],
    *,
    without_own: bool,
) -> PositiveRanks:
    num_items = shape[1]
    query_of, item_of = _flat(positives, shape, without_own=without_own)
    queries, starts = np.unique(query_of, return_index=True)
    starts = np.append(starts, len(query_of))
    ranks, wrong_ties = np.empty((2, len(query_of)), dtype=np.int64)
    size = max(1, BLOCK_BYTES // (4 * num_items))
    for first in range(0, len(queries), size):
        asked = queries[first : first + size]
        block = similarities(asked)
        if not np.isfinite(block).all():
            raise DataError("similarities are not finite: the model's embeddings are broken; train it again")
        if without_own:
            block[np.arange(len(asked)), asked] = -np.inf
        some = slice(starts[first], starts[first + len(asked)])
        ranks[some], wrong_ties[some] = _ranks_in_block(block, np.searchsorted(asked, query_of[some]), item_of[some])
    return PositiveRanks(queries, starts, ranks, num_items - without_own, wrong_ties)


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


def _ranks_in_block(block: NDArray[np.floating], rows: Indices, items: Indices) -> tuple[Indices, Indices]:
    """Ranks of right items behind wrong ones of equal similarity, ascending in each row, and the number of these.

    Args:
        block: similarities of some queries.
        rows, items: of each right item; `rows` is ascending.
    """
    found = block[rows, items]
    order = np.lexsort((-found, rows))  # the best item of each row first; rows stay where they are
    found = found[order]
    counts = [
        (np.count_nonzero(block[row] > value), np.count_nonzero(block[row] == value))
        for row, value in zip(rows, found, strict=True)
    ]
    above, level = np.array(counts, dtype=np.int64).T
    new = (np.diff(rows, prepend=-1) != 0) | (np.diff(found, prepend=np.inf) != 0)
    sizes = np.diff(np.append(np.flatnonzero(new), len(rows)))  # of right items of one row and similarity
    wrong = level - np.repeat(sizes, sizes)
    place = np.arange(len(rows)) - np.repeat(np.flatnonzero(new), sizes)
    return above + wrong + place + 1, wrong
