"""Spearman's correlation of people's ratings with similarities, drawn as Crisscrossed Captions draws it.

Pairs of one query are no independent observations, so a replicate draws half of the queries without replacement and one
rated item of each. The published figure is the mean of 1,000 replicates and their standard deviation (Parekh et al.,
2021). The deviation is the spread of half-sized draws, not the error of the mean. The error is the interval,
which resamples queries with replacement: every pair of a query weighs one over the number of its pairs, so that it
holds no noise of drawing one item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.statistics.intervals import ALPHA, draws

#: As published.
NUM_REPLICATES = 1000
#: Numbers of a block of replicates in memory at once: 8 MB an array.
_BLOCK = 1 << 20

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation in [-1, 1]; that of random similarities is 0.

    Attributes:
        mean, deviation: of the replicates, as published.
        low, high: the 95 % interval of the mean.
    """

    mean: float
    deviation: float
    low: float
    high: float


def average_ranks(values: NDArray[np.floating]) -> Values:
    """Ranks from 1 along the last axis; equal values share the mean of their ranks."""
    order = np.argsort(values, axis=-1)  # equal values share a rank, so their order does not matter
    ordered = np.take_along_axis(values, order, axis=-1)
    position = np.arange(values.shape[-1])
    changes = np.diff(ordered, axis=-1) != 0
    edge = np.ones((*values.shape[:-1], 1), dtype=bool)
    first = np.maximum.accumulate(np.where(np.concatenate([edge, changes], axis=-1), position, 0), axis=-1)
    ends = np.where(np.concatenate([changes, edge], axis=-1), position, values.shape[-1])
    last = np.minimum.accumulate(ends[..., ::-1], axis=-1)[..., ::-1]
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def spearman(one: NDArray[np.floating], other: NDArray[np.floating]) -> Values:
    """Spearman's correlation along the last axis, with average ranks for ties; NaN where either side is constant."""
    left, right = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (average_ranks(one), average_ranks(other)))
    return _correlation(left, right, 1.0)


def sampled_spearman(
    queries: Sequence[int] | NDArray[np.int64],
    ratings: Sequence[float] | NDArray[np.floating],
    similarity: NDArray[np.floating],
    *,
    seed: int,
    num_replicates: int = NUM_REPLICATES,
    num_resamples: int = NUM_REPLICATES,
) -> Correlation:
    """The correlation of ratings with similarities as the module describes.

    Args:
        queries: (num_pairs,) the query of each rating.
        ratings: (num_pairs,) people's mean rating.
        similarity: (num_pairs,) the model's similarity.
        seed: equal seeds give equal results.
        num_replicates: draws of half of the queries.
        num_resamples: of the interval.

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
    weights = 1 / np.bincount(of)[of]
    resampled = [
        _weighted_spearman(rated, near, part[:, of] * weights)
        for block in draws(len(distinct), num_resamples, seed)
        for part in np.array_split(block, max(1, block.shape[0] * len(of) // _BLOCK))
        if len(part)
    ]
    mean = float(found.mean())
    low, high = np.nanquantile(np.concatenate(resampled), [ALPHA / 2, 1 - ALPHA / 2])
    return Correlation(mean, float(found.std(ddof=1)), min(float(low), mean), max(float(high), mean))


def _half_draws(of: NDArray[np.int64], num_queries: int, num_replicates: int, seed: int) -> list[NDArray[np.int64]]:
    """Blocks (some replicates, half of the queries) of pairs: of each drawn query one."""
    generator = np.random.default_rng(seed)
    order = np.argsort(of, kind="stable")
    counts = np.bincount(of, minlength=num_queries)
    starts = np.cumsum(counts) - counts
    half = num_queries // 2
    size = max(1, _BLOCK // num_queries)
    blocks = []
    for start in range(0, num_replicates, size):
        rows = min(size, num_replicates - start)
        drawn = np.argpartition(generator.random((rows, num_queries)), half, axis=1)[:, :half]
        item = (generator.random((rows, half)) * counts[drawn]).astype(np.int64)
        blocks.append(order[starts[drawn] + item])
    return blocks


def _weighted_spearman(one: Values, other: Values, weights: Values) -> Values:
    """(num_replicates,) with weights (num_replicates, num_pairs): a pair counts as often as its weight."""
    total = weights.sum(axis=1, keepdims=True)
    sides = []
    for values in (one, other):
        ranks = _weighted_ranks(values, weights)
        sides.append(ranks - (ranks * weights).sum(axis=1, keepdims=True) / total)
    return _correlation(sides[0], sides[1], weights)


def _weighted_ranks(values: Values, weights: Values) -> Values:
    """(num_replicates, num_pairs): the weight of smaller values, and half of that of equal ones."""
    _, of = np.unique(values, return_inverse=True)
    order = np.argsort(of, kind="stable")
    starts = np.flatnonzero(np.diff(of[order], prepend=-1))
    equal = np.add.reduceat(weights[:, order], starts, axis=1)
    return np.asarray((np.cumsum(equal, axis=1) - equal / 2)[:, of])


def _correlation(left: Values, right: Values, weights: Values | float) -> Values:
    """Of centred values. NaN where one side is constant."""
    product, square, other = ((a * b * weights).sum(axis=-1) for a, b in ((left, right), (left, left), (right, right)))
    norm = np.sqrt(square * other)
    return np.asarray(np.divide(product, norm, out=np.full_like(norm, np.nan), where=norm > 0))
