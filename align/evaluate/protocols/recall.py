"""Recall@K: the share of queries with *at least one* correct item among the first K, the usual definition.

Several texts may name one image and several images may show one concept, so a query has a set of correct items. Ties
count against the model: a wrong item with the same similarity ranks before the right one. A model that maps everything
to one point thus scores 0; with an argsort, its score would depend on the order of the items.

Zero-shot classification and nearest neighbours are the same computation with K = 1 (see `zero_shot`, `knn`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.query_ranks import CUTS
from align.statistics.chance import chance
from align.statistics.intervals import Scored, interval, intervals

#: Queries whose similarities are in memory at once: 1,024 x 25,000 texts (COCO's test split) take 100 MB.
BLOCK = 1024

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
    """Images and the distinct texts that name them, as a retrieval benchmark.

    Attributes:
        texts: the items. `gallery` makes them distinct up to case and white space, in their first spelling.
        image_concepts: (num_images,) the concept of each image.
        text_concepts: (num_texts,) the first concept that each text names.
        texts_of_image: for each image the indices of its correct texts.
        images_of_text: for each text the indices of its correct images.
    """

    texts: list[str]
    image_concepts: list[str]
    text_concepts: list[str]
    texts_of_image: list[Indices]
    images_of_text: list[Indices]


def gallery(images: Iterable[tuple[str, Sequence[str]]]) -> Gallery:
    """Builds the benchmark from (concept, texts) of each image.

    A text of a concept is correct for every image of the concept. A text that two concepts share is one item, correct
    for both: with two equal items, no model could tell which one is right.
    """
    concepts: list[str] = []
    spelled: dict[str, str] = {}
    texts_of_concept: dict[str, dict[str, None]] = defaultdict(dict)
    for concept, texts in images:
        concepts.append(concept)
        for text in texts:
            folded = " ".join(text.split()).casefold()
            if folded:
                spelled.setdefault(folded, text)
                texts_of_concept[concept].setdefault(folded)
    index = {folded: position for position, folded in enumerate(spelled)}
    first_concept: dict[str, str] = {}
    images_of_text: list[list[int]] = [[] for _ in spelled]
    texts_of_image: list[Indices] = []
    for image, concept in enumerate(concepts):
        correct = [index[folded] for folded in texts_of_concept[concept]]
        for folded in texts_of_concept[concept]:
            first_concept.setdefault(folded, concept)
        for text_index in correct:
            images_of_text[text_index].append(image)
        texts_of_image.append(np.array(correct, dtype=np.int64))
    return Gallery(
        texts=list(spelled.values()),
        image_concepts=concepts,
        text_concepts=[first_concept[folded] for folded in spelled],
        texts_of_image=texts_of_image,
        images_of_text=[np.array(correct, dtype=np.int64) for correct in images_of_text],
    )


def ranks(similarity: NDArray[np.floating], correct: Sequence[Indices]) -> NDArray[np.int64]:
    """The rank, from 1, of each query's best correct item; wrong items of equal similarity rank before it.

    Args:
        similarity: (num_queries, num_items), larger is nearer.
        correct: for each query the indices of its correct items, without repeats. A query without correct items gets
            rank num_items + 1, so it always counts as wrong.

    Returns:
        (num_queries,) int64.

    Raises:
        ValueError: a similarity is NaN or infinite; every comparison with NaN is false, which would read as rank 1.
    """
    if not np.isfinite(similarity).all():
        raise ValueError("similarities must be finite")
    result = np.empty(len(correct), dtype=np.int64)
    for query, items in enumerate(correct):
        row = similarity[query]
        if len(items) == 0:
            result[query] = len(row) + 1
            continue
        right = row[items]
        best = right.max()
        result[query] = 1 + np.count_nonzero(row >= best) - np.count_nonzero(right >= best)
    return result


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


def ranks_by_embedding(
    queries: NDArray[np.float32], items: NDArray[np.float32], correct: Sequence[Indices], *, block: int = BLOCK
) -> NDArray[np.int64]:
    """`ranks` of the cosine similarities of L2-normalised rows, with (block, num_items) of them in memory at a time."""
    similarities = similarities_to(items)
    parts = [
        ranks(similarities(queries[start : start + block]), correct[start : start + block])
        for start in range(0, len(queries), block)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Direction:
    """Ranks of one direction, and what a score needs in addition.

    Attributes:
        ranks: (num_queries,) from 1.
        num_correct: (num_queries,) number of correct items of each query.
        num_items: number of items in the gallery.
        clusters: (num_queries,) the concept of each query, for the bootstrap.
    """

    ranks: NDArray[np.int64]
    num_correct: list[int]
    num_items: int
    clusters: Sequence[Hashable]

    def hits(self, k: int) -> Scored:
        """For each query 1.0 if a correct item is among the first k, else 0.0."""
        return Scored((self.ranks <= k).astype(np.float64), self.clusters)

    def chance(self, k: int) -> float:
        """Expected recall@k of a random order."""
        return chance(self.num_correct, self.num_items, k)


def recall(direction: Direction, k: int, *, num_resamples: int, seed: int) -> Score:
    """Recall@k of one direction. Raises ValueError if there is no query."""
    hits = direction.hits(k)
    low, high = interval([hits], num_resamples=num_resamples, seed=seed)
    return Score(float(hits.values.mean()), low, high, direction.chance(k))


def mean_recall(directions: Sequence[Direction], *, num_resamples: int, seed: int) -> Score:
    """The mean of recall@1, @5 and @10 over the given directions (with both, the paper's Multi30K metric)."""
    groups = []
    for direction in directions:
        per_query = np.mean([direction.hits(k).values for k in CUTS], axis=0)
        groups.append(Scored(per_query, direction.clusters))
    low, high = interval(groups, num_resamples=num_resamples, seed=seed)
    value = float(np.mean([group.values.mean() for group in groups]))
    guess = float(np.mean([direction.chance(k) for direction in directions for k in CUTS]))
    return Score(value, low, high, guess)


@dataclass(frozen=True)
class Figure:
    """A figure as the unweighted mean of the means of groups, each a share per query in [0, 1].

    Attributes:
        groups: one for a plain mean; several (directions, folds, relations) for their mean.
        chance: the figure of a random order.
    """

    groups: Sequence[Scored]
    chance: float


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
        name: Score(float(np.mean([group.values.mean() for group in figure.groups])), low, high, figure.chance)
        for (name, figure), (low, high) in zip(figures.items(), bounds, strict=True)
    }
