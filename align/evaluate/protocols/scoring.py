"""Figures of one set with their intervals and chance, from one draw of its clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from align.errors import DataError
from align.evaluate.protocols.recall import Score
from align.statistics.intervals import Scored, intervals


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
