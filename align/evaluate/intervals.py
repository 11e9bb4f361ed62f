"""Bootstrap 95 % intervals for the mean of per-query scores in [0, 1].

Queries about one concept succeed and fail together (three texts of one emoji, its picture by four vendors), so whole
concepts are resampled, never single queries. The paper gives intervals for Crisscrossed Captions only.

The interval covers the choice of queries; the gallery that they are asked against stays fixed. If all queries fail, or
all succeed, resampling sees no spread and the interval would have no width: the exact (Clopper-Pearson) bound for that
number of concepts is used instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: One minus the confidence level.
ALPHA = 0.05


@dataclass(frozen=True)
class Scored:
    """Scores of queries of one direction.

    Attributes:
        values: (num_queries,) float64 in [0, 1].
        clusters: (num_queries,) the concept of each query; queries of one concept are resampled together.
    """

    values: NDArray[np.float64]
    clusters: Sequence[Hashable]


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
    if not groups or any(len(group.values) == 0 for group in groups):
        raise ValueError("an interval needs at least one query")
    index: dict[Hashable, int] = {}
    for group in groups:
        for cluster in group.clusters:
            index.setdefault(cluster, len(index))
    num_clusters = len(index)
    mean = float(np.mean([group.values.mean() for group in groups]))
    if mean in (0.0, 1.0):
        bound = (ALPHA / 2) ** (1 / num_clusters)
        return (0.0, 1 - bound) if mean == 0.0 else (bound, 1.0)

    draws = np.random.default_rng(seed).multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), num_resamples
    )
    means = np.zeros(num_resamples)
    for group in groups:
        ids = np.array([index[cluster] for cluster in group.clusters])
        sums = np.bincount(ids, weights=group.values, minlength=num_clusters)
        counts = np.bincount(ids, minlength=num_clusters)
        means += (draws @ sums) / np.maximum(draws @ counts, 1) / len(groups)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return min(float(low), mean), max(float(high), mean)
