"""Recall@K: the share of queries with *at least one* correct item among the first K, the usual definition.

Several texts may name one image and several images may show one concept, so a query has a set of correct items. A sort
leaves the order of equal similarities to chance, so a query counts by the share of these orders that answer it: a model
that maps everything to one point scores chance.

Zero-shot classification and nearest neighbours are the same computation with K = 1 (see `zero_shot`, `knn`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.query_ranks import CUTS
from align.statistics.chance import chance, expected_hits
from align.statistics.intervals import Scored, intervals

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """A measured share in [0, 1], its 95 % interval, and the value of a random order."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Gallery:
    """Images and the texts that name them, as a retrieval benchmark.

    Attributes:
        texts: the items.
        image_concepts: (num_images,) the concept of each image.
        text_concepts: (num_texts,) the concept that each text names.
        texts_of_image: for each image the indices of its correct texts.
        images_of_text: for each text the indices of its correct images.
    """

    texts: list[str]
    image_concepts: list[str]
    text_concepts: list[str]
    texts_of_image: list[Indices]
    images_of_text: list[Indices]


def similarities_to(items: NDArray[np.floating]) -> Callable[[NDArray[np.floating]], NDArray[np.floating]]:
    """(num_queries, width) queries -> (num_queries, num_items) similarities; those of equal items are equal.

    A product of matrices alone may round them differently: OpenBLAS does on some CPUs, by where an item stands.
    """
    transposed, seen = items.T, dict[bytes, int]()
    first = np.array([seen.setdefault(blake2b(row.tobytes()).digest(), n) for n, row in enumerate(items)], np.int64)
    again = np.flatnonzero(first != np.arange(len(items)))

    def similarities(queries: NDArray[np.floating]) -> NDArray[np.floating]:
        found: NDArray[np.floating] = queries @ transposed
        found[:, again] = found[:, first[again]]
        return found

    return similarities


@dataclass(frozen=True)
class Direction:
    """Ranks of one direction, and what a score needs in addition.

    Attributes:
        ranks: (num_queries,) from 1, behind wrong items of equal similarity.
        num_correct: (num_queries,) number of correct items of each query.
        num_items: number of items in the gallery.
        clusters: (num_queries,) the concept of each query, for the bootstrap.
        ties: (num_queries, 2) wrong and right ones, see `expected_hits`; None: nothing ties.
    """

    ranks: NDArray[np.int64]
    num_correct: list[int]
    num_items: int
    clusters: Sequence[Hashable]
    ties: NDArray[np.int64] | None = None

    def hits(self, k: int) -> Scored:
        """For each query 1.0 if a correct item is among the first k, else 0.0; in ties the share of their orders."""
        return Scored(expected_hits(self.ranks, self.ties, k), self.clusters)

    def chance(self, k: int) -> float:
        """Expected recall@k of a random order."""
        return chance(self.num_correct, self.num_items, k)


@dataclass(frozen=True)
class Figure:
    """A figure as the unweighted mean of the means of groups, each a share per query in [0, 1].

    Attributes:
        groups: one for a plain mean; both directions for their mean.
        chance: the figure of a random order.
    """

    groups: Sequence[Scored]
    chance: float

    @property
    def value(self) -> float:
        """The mean of the groups' means."""
        return float(np.mean([group.values.mean() for group in self.groups]))


def recall_figure(directions: Sequence[Direction], cuts: Sequence[int] = CUTS) -> Figure:
    """The mean of recall@K over the K and the directions; with both directions and all `CUTS` Multi30K's metric."""
    groups = [Scored(np.mean([one.hits(k).values for k in cuts], axis=0), one.clusters) for one in directions]
    return Figure(groups, float(np.mean([one.chance(k) for one in directions for k in cuts])))


def recall(direction: Direction, k: int, *, num_resamples: int, seed: int) -> Score:
    """Recall@k of one direction. Raises DataError if there is no query."""
    return scores({"recall": recall_figure([direction], [k])}, num_resamples=num_resamples, seed=seed)["recall"]


def mean_recall(directions: Sequence[Direction], *, num_resamples: int, seed: int) -> Score:
    """The mean of recall@1, @5 and @10 over the given directions. Raises DataError if there is no query."""
    return scores({"recall": recall_figure(directions)}, num_resamples=num_resamples, seed=seed)["recall"]


def scores(figures: Mapping[str, Figure], *, num_resamples: int, seed: int) -> dict[str, Score]:
    """Each figure with its 95 % interval. A cluster is drawn in all groups of all figures together.

    Raises:
        DataError: a figure has no query.
    """
    for name, figure in figures.items():
        if not figure.groups or any(len(group.values) == 0 for group in figure.groups):
            raise DataError(f"{name}: nothing was asked, so it has no value")
    bounds = intervals([figure.groups for figure in figures.values()], num_resamples=num_resamples, seed=seed)
    return {
        name: Score(figure.value, low, high, figure.chance)
        for (name, figure), (low, high) in zip(figures.items(), bounds, strict=True)
    }
