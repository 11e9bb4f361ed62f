"""Spearman's correlation of people's ratings with similarities, drawn as Crisscrossed Captions draws it.

Pairs of one query are no independent observations, so a replicate draws half of the queries without replacement and one
rated item of each. The published figure is the mean of 1,000 replicates and their standard deviation (Parekh et al.,
2021). Means of half of a sample, drawn without replacement, spread as much as means of whole samples do. So the
deviation stands for the error of the figure; it is a little too large: which item was drawn of a query adds to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError

#: As published.
NUM_REPLICATES = 1000
#: Numbers of a block of replicates in memory at once: 8 MB an array.
_NUMBERS_AT_ONCE = 1 << 20

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation in [-1, 1]; that of random similarities is 0.

    Attributes:
        mean, deviation: of the replicates, as published.
    """

    mean: float
    deviation: float


def spearman(one: NDArray[np.floating], other: NDArray[np.floating]) -> Values:
    """Spearman's correlation along the last axis, with average ranks for ties; NaN where either side is constant."""
    from scipy.stats import rankdata

    ranks = (rankdata(values, axis=-1) for values in (one, other))
    left, right = (of - of.mean(axis=-1, keepdims=True) for of in ranks)
    product, square, other_square = ((a * b).sum(axis=-1) for a, b in ((left, right), (left, left), (right, right)))
    norm = np.sqrt(square * other_square)
    return np.asarray(np.divide(product, norm, out=np.full_like(norm, np.nan), where=norm > 0))


def sampled_spearman(
    queries: Sequence[int] | NDArray[np.int64],
    ratings: Sequence[float] | NDArray[np.floating],
    similarity: NDArray[np.floating],
    *,
    seed: int,
    num_replicates: int = NUM_REPLICATES,
) -> Correlation:
    """The correlation of ratings with similarities as the module describes.

    Args:
        queries: (num_pairs,) the query of each rating.
        ratings: (num_pairs,) people's mean rating.
        similarity: (num_pairs,) the model's similarity.
        seed: equal seeds give equal results.
        num_replicates: draws of half of the queries.

    Raises:
        DataError: lengths differ, fewer than four queries, a rating or similarity is not finite, or all of them in a
            draw are equal: a model that maps everything to one point has no correlation.
    """
    rated, near = np.asarray(ratings, dtype=np.float64), np.asarray(similarity, dtype=np.float64)
    distinct, of = np.unique(np.asarray(queries), return_inverse=True)
    if not len(of) == len(rated) == len(near) or rated.ndim != 1 or near.ndim != 1:
        raise DataError(f"{len(of)} queries, {rated.shape} ratings and {near.shape} similarities")
    if len(distinct) < 4:
        raise DataError(f"{len(distinct)} rated queries: half of them make no correlation")
    if not (np.isfinite(rated).all() and np.isfinite(near).all()):
        raise DataError("ratings or similarities are not finite")
    found = np.concatenate(
        [spearman(rated[pairs], near[pairs]) for pairs in _half_draws(of, len(distinct), num_replicates, seed)]
    )
    if np.isnan(found).any():
        raise DataError("all ratings or all similarities of a draw are equal, so they have no correlation")
    return Correlation(float(found.mean()), float(found.std(ddof=1)))


def _half_draws(of: NDArray[np.int64], num_queries: int, num_replicates: int, seed: int) -> list[NDArray[np.int64]]:
    """Blocks (some replicates, half of the queries) of pairs: of each drawn query one."""
    generator = np.random.default_rng(seed)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=num_queries)
    starts = np.cumsum(counts) - counts
    half = num_queries // 2
    size = max(1, _NUMBERS_AT_ONCE // num_queries)
    blocks = []
    for start in range(0, num_replicates, size):
        rows = min(size, num_replicates - start)
        drawn = np.argpartition(generator.random((rows, num_queries)), half, axis=1)[:, :half]
        item = (generator.random((rows, half)) * counts[drawn]).astype(np.int64)
        blocks.append(order[starts[drawn] + item])
    return blocks
