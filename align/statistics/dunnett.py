"""Arms against a base over seeds: y = arm + seed by least squares, one pooled variance, Dunnett's intervals.

All arms with one seed share the order of the data and the first weights, so seeds are blocks. Missing runs are left
out: least squares needs no whole table. All differences together lie in their intervals with probability 0.95 (Dunnett
1955): the critical value is the quantile of the largest |t| of a multivariate t distribution, whose correlations are
those of the differences (1/2 in a whole table). It is found by drawing, to about 0.002 of three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
_DRAWS, _BLOCKS = 1 << 17, 16

Verdict = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Difference:
    """An arm minus the base.

    Attributes:
        value: by least squares.
        low, high: the simultaneous interval; None if the runs do not show how much equal runs differ.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What the interval says; None without one."""
        if self.low is None or self.high is None:
            return None
        return "better" if self.low > 0 else "worse" if self.high < 0 else "not told apart"


@dataclass(frozen=True)
class Comparison:
    """All arms against the base.

    Attributes:
        means: arm -> its figure in a mean seed, of arms with a run.
        differences: arm -> minus base; without arms that share no seed with it, directly or through others.
        deviation: of a run from its arm and seed; None if no degree of freedom is left to tell.
        freedom: degrees of freedom of the deviation.
        critical: half an interval, in standard errors.
    """

    means: dict[str, float]
    differences: dict[str, Difference]
    deviation: float | None
    freedom: int
    critical: float | None


def against_base(figures: Mapping[tuple[str, int], float], base: str) -> Comparison:
    """Compares every arm that has a run with the base.

    Args:
        figures: (arm, seed) -> figure of each run.
        base: the arm with which the others are compared.
    """
    arms = list(dict.fromkeys(arm for arm, _ in figures))
    seeds = list(dict.fromkeys(seed for _, seed in figures))
    design = np.zeros((len(figures), len(arms) + len(seeds)))
    for row, (arm, seed) in zip(design, figures, strict=True):
        row[[arms.index(arm), len(arms) + seeds.index(seed)]] = 1
    y = np.array(list(figures.values()))
    inverse = np.linalg.pinv(design)
    known = inverse @ design  # what it leaves as it is, these runs tell
    effects = inverse @ y
    freedom = len(y) - int(np.linalg.matrix_rank(design)) if len(y) else 0
    means, contrasts = {}, {}
    for number, arm in enumerate(arms):
        of_mean = np.concatenate([np.eye(len(arms))[number], np.full(len(seeds), 1 / len(seeds))])
        means[arm] = float(of_mean @ effects)
        minus = np.eye(len(design.T))[number] - (np.eye(len(design.T))[arms.index(base)] if base in arms else 0)
        if arm != base and np.allclose(minus @ known, minus):
            contrasts[arm] = minus
    values = {arm: float(minus @ effects) for arm, minus in contrasts.items()}
    if freedom <= 0 or not contrasts:
        return Comparison(means, {arm: Difference(value) for arm, value in values.items()}, None, freedom, None)
    deviation = float(np.sqrt(np.sum((y - design @ effects) ** 2) / freedom))
    errors = np.stack(list(contrasts.values())) @ inverse
    sizes = np.linalg.norm(errors, axis=1)
    critical = critical_value(errors @ errors.T / np.outer(sizes, sizes), freedom)
    halves = critical * deviation * sizes
    found = zip(values.items(), halves.tolist(), strict=True)
    differences = {arm: Difference(value, value - half, value + half) for (arm, value), half in found}
    return Comparison(means, differences, deviation, freedom, critical)


def critical_value(correlations: NDArray[np.float64], freedom: int, confidence: float = CONFIDENCE) -> float:
    """The bound below which the largest |t| of differences with these correlations stays with this probability."""
    generator = np.random.default_rng(0)
    sizes, axes = np.linalg.eigh(correlations)
    root = axes * np.sqrt(sizes.clip(min=0))
    largest = []
    for _ in range(_BLOCKS):
        normal = generator.standard_normal((_DRAWS, len(root))) @ root.T
        largest.append(np.abs(normal).max(axis=1) / np.sqrt(generator.chisquare(freedom, _DRAWS) / freedom))
    return float(np.quantile(np.concatenate(largest), confidence))


def reading(verdict: Verdict | None, expected: str | None) -> str:
    """A verdict beside what the paper found; empty if one of them is not known."""
    if verdict is None or expected is None or verdict == "not told apart":
        return verdict or "" if expected else ""
    return "as in the paper" if verdict == expected else "against the paper"
