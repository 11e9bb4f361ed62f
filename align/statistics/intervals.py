"""Bootstrap 95 % intervals for the mean of per-query scores in [0, 1], and the draws that they are made of.

Queries about one concept succeed and fail together (three texts of one emoji, its picture by four vendors), so whole
concepts are resampled, never single queries. The paper gives intervals for Crisscrossed Captions only.

The interval covers the choice of queries; the gallery that they are asked against stays fixed. If all queries fail, or
all succeed, resampling sees no spread and the interval would have no width: the exact (Clopper-Pearson) bound for that
number of concepts is used instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: One minus the confidence level.
ALPHA = 0.05
#: Counts that are in memory at the same time: 64 MB.
_COUNTS_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Scored:
    """Scores of queries of one direction.

    Attributes:
        values: (num_queries,) float64 in [0, 1]; a difference of two models is in [-1, 1].
        clusters: (num_queries,) the concept of each query; queries of one concept are resampled together.
    """

    values: NDArray[np.float64]
    clusters: Sequence[Hashable]


def by_cluster(groups: Sequence[Scored]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sum and the number of the values of each concept, concepts numbered over all groups together.

    Returns:
        Sums and numbers, both (num_groups, num_clusters): a group's mean is the total of its sums divided by the total
        of its numbers.
    """
    index: dict[Hashable, int] = {}
    ids = [[index.setdefault(cluster, len(index)) for cluster in group.clusters] for group in groups]
    sums = [np.bincount(of, weights=group.values, minlength=len(index)) for of, group in zip(ids, groups, strict=True)]
    counts = [np.bincount(of, minlength=len(index)).astype(np.float64) for of in ids]
    return np.stack(sums), np.stack(counts)


def draws(num_clusters: int, num_resamples: int, seed: int | tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    """How often each replicate has each concept: blocks (some replicates, num_clusters), `num_resamples` rows in total.

    Each row is a draw of `num_clusters` concepts with replacement. Equal seeds give equal rows.
    """
    if num_clusters * num_resamples <= _COUNTS_AT_ONCE:
        yield _all_draws(num_clusters, num_resamples, seed)
        return
    generator = np.random.default_rng(seed)
    block = max(1, _COUNTS_AT_ONCE // num_clusters)
    for start in range(0, num_resamples, block):
        yield _drawn(generator, num_clusters, min(block, num_resamples - start))


@lru_cache(maxsize=2)
def _all_draws(num_clusters: int, num_resamples: int, seed: int | tuple[int, ...]) -> NDArray[np.float64]:
    """All rows in one block: the metrics of a set use the same rows, and drawing takes longer than using them."""
    drawn = _drawn(np.random.default_rng(seed), num_clusters, num_resamples)
    drawn.flags.writeable = False
    return drawn


def _drawn(generator: np.random.Generator, num_clusters: int, number: int) -> NDArray[np.float64]:
    counts = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), number)
    return counts.astype(np.float64)


def interval(groups: Sequence[Scored], *, num_resamples: int, seed: int) -> tuple[float, float]:
    """The percentile interval of the unweighted mean of the groups' means.

    Args:
        groups: one for a plain metric; several (the two directions) for their mean. A concept is drawn in all groups
            together.
        num_resamples: bootstrap replicates; 2,000 determine the bounds to about two digits.
        seed: equal seeds give equal intervals.

    Returns:
        (low, high), both in [0, 1], with low <= the mean <= high.

    Raises:
        ValueError: no group, or a group without queries.
    """
    return intervals([groups], num_resamples=num_resamples, seed=seed)[0]


def intervals(figures: Sequence[Sequence[Scored]], *, num_resamples: int, seed: int) -> list[tuple[float, float]]:
    """`interval` of each figure, whose queries are of the same concepts: a concept is drawn in all of them together.

    For many figures of one set: drawing takes longer than using what was drawn.

    Raises:
        ValueError: a figure has no group, or a group has no query.
    """
    if any(not groups or any(len(group.values) == 0 for group in groups) for groups in figures):
        raise ValueError("an interval needs at least one query")
    if not figures:
        return []
    sums, counts = by_cluster([group for groups in figures for group in groups])
    ends = np.cumsum([len(groups) for groups in figures])[:-1]
    means = [
        np.stack([part.mean(axis=1) for part in np.split(_means(drawn, sums, counts), ends, axis=1)])
        for drawn in draws(sums.shape[1], num_resamples, seed)
    ]
    drawn_means = np.concatenate(means, axis=1)
    parts = zip(figures, np.split(counts, ends), drawn_means, strict=True)
    found = []
    for groups, part, drawn in parts:
        mean = float(np.mean([group.values.mean() for group in groups]))
        found.append(bounds(mean, int(np.count_nonzero(part.any(axis=0))), drawn))
    return found


def bounds(mean: float, num_clusters: int, replicates: NDArray[np.float64]) -> tuple[float, float]:
    """The percentile interval of a share from its replicates; the exact bound where the share is 0 or 1."""
    if mean in (0.0, 1.0):
        bound = (ALPHA / 2) ** (1 / num_clusters)
        return (0.0, 1 - bound) if mean == 0.0 else (bound, 1.0)
    low, high = np.quantile(replicates, [ALPHA / 2, 1 - ALPHA / 2])
    return min(float(low), mean), max(float(high), mean)


def _means(drawn: NDArray[np.float64], sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """(num_replicates, num_groups)."""
    return np.asarray((drawn @ sums.T) / np.maximum(drawn @ counts.T, 1))
