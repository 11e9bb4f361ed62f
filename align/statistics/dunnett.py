"""Arms against a base over seeds: y = arm + seed by least squares, one pooled variance, Dunnett's intervals.

All arms with one seed share the order of the data and the first weights, so seeds are blocks. Missing runs are left
out: least squares needs no whole table. All differences together lie in their intervals with probability 0.95 (Dunnett
1955): the critical value is the quantile of the largest |t| of a multivariate t distribution, whose correlations are
those of the differences (1/2 in a whole table). It is found by drawing, to about 0.002 of three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_DRAWS, _BLOCKS = 1 << 17, 16


@dataclass(frozen=True)
class Difference:
    """An arm minus the base: by least squares, with the simultaneous interval.

    The verdict is `better`, `worse`, or `not told apart`; without one it is empty, and the interval is the value.
    """

    value: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Comparison:
    """All arms against the base.

    Attributes:
        means: arm -> its figure in a mean seed.
        differences: arm -> minus base; without arms that share no seed with it, directly or through others.
        freedom: degrees of freedom that are left to tell how much equal runs differ; 0: no verdicts.
        deviation: of a run from its arm and seed.
        critical: half an interval, in standard errors.
    """

    means: dict[str, float]
    differences: dict[str, Difference]
    freedom: int
    deviation: float
    critical: float


def against_base(figures: Mapping[tuple[str, int], float], base: str) -> Comparison:
    """Compares every arm that has a run with the base.

    Args:
        figures: (arm, seed) -> figure of each run.
        base: the arm with which the others are compared.
    """
    arms = list(dict.fromkeys(arm for arm, _ in figures))
    seeds = list(dict.fromkeys(seed for _, seed in figures))
    if base not in arms:
        return Comparison({}, {}, 0, 0.0, 0.0)
    arm_rows, seed_rows = np.eye(len(arms)), np.eye(len(seeds))
    design = np.array([[*arm_rows[arms.index(arm)], *seed_rows[seeds.index(seed)]] for arm, seed in figures])
    y, inverse = np.array(list(figures.values())), np.linalg.pinv(design)
    effects = inverse @ y
    means = {
        arm: float(one @ effects[: len(arms)] + effects[len(arms) :].mean())
        for arm, one in zip(arms, arm_rows, strict=True)
    }
    minus = np.array([[*row, *np.zeros(len(seeds))] for row in arm_rows - arm_rows[arms.index(base)]])
    known = np.isclose(minus @ inverse @ design, minus).all(axis=1)  # these runs tell it
    compared = [arm for arm, tells in zip(arms, known, strict=True) if tells and arm != base]
    minus = minus[[arms.index(arm) for arm in compared]]
    freedom = max(len(y) - int(np.linalg.matrix_rank(design)), 0) if compared else 0
    deviation = critical = 0.0
    sizes = np.linalg.norm(minus @ inverse, axis=1)
    if freedom:
        deviation = float(np.sqrt(np.sum((y - design @ effects) ** 2) / freedom))
        critical = critical_value(minus @ inverse @ inverse.T @ minus.T / np.outer(sizes, sizes), freedom)
    differences = {}
    for arm, value, half in zip(
        compared, (minus @ effects).tolist(), (critical * deviation * sizes).tolist(), strict=True
    ):
        verdict = "better" if value > half else "worse" if value < -half else "not told apart"
        differences[arm] = Difference(value, value - half, value + half, verdict if freedom else "")
    return Comparison(means, differences, freedom, deviation, critical)


def critical_value(correlations: NDArray[np.float64], freedom: int) -> float:
    """The bound below which the largest |t| of differences with these correlations stays with probability 0.95."""
    generator = np.random.default_rng(0)
    sizes, axes = np.linalg.eigh(correlations)
    root = axes * np.sqrt(sizes.clip(min=0))
    largest = []
    for _ in range(_BLOCKS):
        normal = generator.standard_normal((_DRAWS, len(root))) @ root.T
        largest.append(np.abs(normal).max(axis=1) / np.sqrt(generator.chisquare(freedom, _DRAWS) / freedom))
    return float(np.quantile(np.concatenate(largest), CONFIDENCE))
