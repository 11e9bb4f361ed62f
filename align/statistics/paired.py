"""The difference between two models on the same queries, with a one-sided bound: a paired bootstrap over concepts.

Each query is asked of both models, so only the difference of their answers counts: what makes a query hard for both
cancels. The concept is the independent unit (see `intervals`). Concepts are drawn for all metrics together, as far as
their sets share concepts; sets that share none are drawn apart.

The bound is studentised and symmetric (bootstrap-t: Efron and Tibshirani 1993, chapter 12; symmetric: Hall 1988): each
replicate's difference is divided by its own standard error, and its sign is dropped, since the difference of two equal
models is as often positive as negative. At confidence 0.95 it promoted 4.3 % of equal models with 12 concepts, 4.7 %
with 30 and 5.3 % with 100; the plain percentile bound 7.7, 4.7 and 5.6 %, the one that keeps the sign 6.0, 6.2 and 5.4
% (2,000 to 3,000 simulated comparisons, in both directions; `tests/unit/statistics/test_paired.py` counts again).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from align.formats.query_ranks import QueryRanks
from align.statistics.intervals import Scored, by_cluster, draws

#: Replicates. The slices need quantiles far in the tail: 0.05 / 30 of these are about seven replicates.
NUM_RESAMPLES = 4000
#: Standard errors below this are rounding.
_NO_SPREAD = 1e-12
#: The probability that a difference of size `detectable` is found.
POWER = 0.8

_METRIC = re.compile(r"(?P<set>.+?)/((\w+_to_\w+/)?(recall@\d+|mean_recall)|(\w+)/(accuracy|top5))")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A part of what is compared.

    Attributes:
        name: of the set.
        weight: of the mean of `differences` in the whole; the weights of all parts add up to 1.
        differences: candidate minus champion, by query.
    """

    name: str
    weight: float
    differences: Scored


@dataclass(frozen=True)
class Difference:
    """Candidate minus champion.

    Attributes:
        value: the mean difference, in [-1, 1].
        error: its standard error.
        low, high: one-sided bounds, each at the confidence asked for.
        critical: the bounds are this many standard errors away from `value`.
        num_units: independent units, that is, concepts.
    """

    value: float
    error: float
    low: float
    high: float
    critical: float
    num_units: int

    def detectable(self, margin: float) -> float:
        """The smallest true difference whose `low` exceeds the margin in 80 % of trials of this size."""
        return margin + (self.critical + NormalDist().inv_cdf(POWER)) * self.error


def of_metrics(metrics: Sequence[str], candidate: QueryRanks, champion: QueryRanks) -> list[Part]:
    """The parts of the difference of the mean of metrics.

    Raises:
        DataError: a metric was not measured.
        ValueError: the two were asked different queries, which cannot be if the digests of their sets are equal.
    """
    parts = []
    for metric in metrics:
        mine, theirs = candidate.scored(metric), champion.scored(metric)
        for one, other in zip(mine, theirs, strict=True):
            if one.clusters != other.clusters:
                raise ValueError(f"{metric}: the two models were asked different queries")
            differences = Scored(one.values - other.values, one.clusters)
            parts.append(Part(set_of(metric), 1 / (len(metrics) * len(mine)), differences))
    return parts


def set_of(metric: str) -> str:
    """The set of a metric: `concepts` of `concepts/image_to_text/recall@10`."""
    match = _METRIC.fullmatch(metric)
    return match["set"] if match else metric


def difference(
    parts: Sequence[Part], *, confidence: float, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Difference:
    """The weighted mean of the parts' means, with bounds.

    Args:
        parts: at least one, none of them empty.
        confidence: of each bound, one-sided; 0.95 for one chance in twenty to be wrong.
        num_resamples: replicates.
        seed: equal seeds give equal bounds.
    """
    pools = [_Pool(pool) for pool in _pools(parts)]
    value, error = sum(pool.value for pool in pools), sum(pool.variance for pool in pools) ** 0.5
    num_units = sum(pool.num_units for pool in pools)
    if error < _NO_SPREAD:
        return _without_spread(value, confidence, num_units)
    values, variances = np.zeros(num_resamples), np.zeros(num_resamples)
    for number, pool in enumerate(pools):
        drawn_values, drawn_variances = pool.resampled(num_resamples, (seed, number))
        values += drawn_values
        variances += drawn_variances
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (values - value) / np.sqrt(variances)
    ratios = np.where(np.isnan(ratios), 0.0, np.abs(ratios))  # NaN: a replicate of equal units, at the value itself
    critical = float(np.quantile(ratios, 2 * confidence - 1, method="higher"))
    low, high = max(value - critical * error, -1.0), min(value + critical * error, 1.0)
    return Difference(value, error, low, high, critical, num_units)


def _without_spread(value: float, confidence: float, num_units: int) -> Difference:
    """The bounds if all units differ by the same.

    Other units may differ by anything: this is the exact bound on their number.
    """
    share = (1 - confidence) ** (1 / num_units)
    bound = abs(value) * share - (1 - share)
    low = min(bound, value) if value > 0 else value
    high = max(-bound, value) if value < 0 else value
    return Difference(value, 0.0, low, high, NormalDist().inv_cdf(confidence), num_units)


class _Pool:
    """Sets that share concepts.

    A set's mean is a ratio, its sum over its number of queries; both vary with the concepts that are drawn. Its
    variance is that of the linearised ratio, summed by concept.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._sums, self._counts = by_cluster([part.differences for part in parts])
        self._weights = np.array([part.weight for part in parts])
        self.num_units = self._sums.shape[1]
        values, variances = self._of(np.ones((1, self.num_units)))
        self.value, self.variance = float(values[0]), float(variances[0])

    def resampled(self, num_resamples: int, seed: tuple[int, ...]) -> tuple[Floats, Floats]:
        """The value and its variance in each replicate."""
        blocks = [self._of(drawn) for drawn in draws(self.num_units, num_resamples, seed)]
        return np.concatenate([one for one, _ in blocks]), np.concatenate([other for _, other in blocks])

    def _of(self, drawn: Floats) -> tuple[Floats, Floats]:
        """The value and its variance if each unit was drawn so often, (num_replicates, num_units)."""
        numbers = np.maximum(drawn @ self._counts.T, 1.0)
        means = (drawn @ self._sums.T) / numbers
        shares = self._weights / numbers
        influence = shares @ self._sums - (shares * means) @ self._counts
        correction = self.num_units / max(self.num_units - 1, 1)
        return means @ self._weights, correction * (drawn * influence**2).sum(axis=1)


def _pools(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The parts, in groups whose sets share concepts, directly or through others."""
    waiting = list(parts)
    while waiting:
        pool, names, known = list[Part](), {waiting[0].name}, set[Hashable]()
        while near := [
            part for part in waiting if part.name in names or not known.isdisjoint(part.differences.clusters)
        ]:
            taken = {id(part) for part in near}
            waiting = [part for part in waiting if id(part) not in taken]
            pool += near
            names |= {part.name for part in near}
            known |= {cluster for part in near for cluster in part.differences.clusters}
        yield pool
