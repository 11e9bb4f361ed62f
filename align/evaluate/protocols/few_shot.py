"""Few-shot classification: a classifier from a few pictures a class.

`few_shot` is big_vision's formula (github.com/google-research/big_vision, `evaluators/fewshot_lsr.py`). Features are
whitened one by one, with mean and standard deviation of the few pictures. A column of 100 is added. The weights are the
least squares of one-hot labels in {-1, 1}, with an L2 penalty of 2^10. 1, 5, 10 and 25 pictures a class, three seeds.
Pictures are drawn as there: `default_rng(seed)` permutes the pictures of each class in turn, and the first ones are
taken; a class with fewer gives all that it has.

Deviation: the least squares are computed in float64, there in float32.

Ties: equal scores of two classes are `UNDECIDED`. Equal seeds give equal draws, and equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled, largest, require_every_class, require_one_width

SHOTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
L2, BIAS = 2.0**10, 100.0
#: Added to standard deviations, so that a feature without any gives zeros.
_EPSILON = 1e-5
#: Test rows that are in memory at once.
_BLOCK = 8192


@dataclass(frozen=True)
class LeastSquares:
    """A classifier on whitened features.

    Attributes:
        weights: (width + 1, num_classes) float64, the bias column's last.
        mean: (width,) float64, of the few pictures.
        deviation: (width,) float64.
    """

    weights: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    def scores(self, rows: NDArray[np.float32]) -> NDArray[np.float64]:
        """(num_rows, num_classes), larger is more likely."""
        scores: NDArray[np.float64] = _whitened(rows, self.mean, self.deviation) @ self.weights
        return scores

    def answers(self, test: Labelled) -> NDArray[np.int64]:
        """(num_test,) the class of the largest score, or `UNDECIDED`. Raises DataError as `Labelled.rows`."""
        return np.concatenate([largest(self.scores(rows)) for _, rows in test.parts(_BLOCK)])


def few_of_each(labels: NDArray[np.int64], num_classes: int, seed: int) -> list[NDArray[np.int64]]:
    """For each class its pictures in an order drawn by the seed; the first `shots` are those to take."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(np.flatnonzero(labels == label)) for label in range(num_classes)]


def least_squares(train: Labelled, num_classes: int, *, l2: float = L2) -> LeastSquares:
    """big_vision's formula over all given pictures.

    Args:
        train: the few pictures.
        num_classes: labels are below it.
        l2: the penalty, of the bias, too.

    Raises:
        DataError: a feature is NaN or infinite, or a label is not below num_classes.
    """
    rows = train.rows(slice(None)).astype(np.float64)
    if train.labels.max() >= num_classes:
        raise DataError(f"{train.name}: label {train.labels.max()}, but there are {num_classes} classes")
    mean, deviation = rows.mean(axis=0), rows.std(axis=0) + _EPSILON
    known = _whitened(rows, mean, deviation)
    wanted = np.where(np.arange(num_classes) == train.labels[:, None], 1.0, -1.0)
    number, width = known.shape
    if number >= width:  # two forms of one solution: the smaller system of equations is solved
        weights = np.linalg.solve(known.T @ known + l2 * np.eye(width), known.T @ wanted)
    else:
        weights = known.T @ np.linalg.solve(known @ known.T + l2 * np.eye(number), wanted)
    return LeastSquares(np.asarray(weights, dtype=np.float64), mean, deviation)


def few_shot(
    train: Labelled, test: Labelled, num_classes: int, *, shots: Sequence[int] = SHOTS, seeds: Sequence[int] = SEEDS
) -> Mapping[int, list[NDArray[np.int64]]]:
    """Answers from a few pictures a class.

    Args:
        train: from which the few are drawn.
        test: is answered; its labels are not looked at.
        num_classes: labels of train are below it.
        shots: pictures a class.
        seeds: of the draws. A seed's draw of 1 is part of its draw of 5.

    Returns:
        Number of shots -> for each seed (num_test,) classes, or `UNDECIDED`.

    Raises:
        DataError: splits do not fit together, a class has no picture, or a feature is NaN or infinite.
    """
    draws = _draws(train, test, num_classes, shots, seeds)
    return {
        number: [least_squares(few, num_classes).answers(test) for few in draws_of_number]
        for number, draws_of_number in draws.items()
    }


def _draws(
    train: Labelled, test: Labelled, num_classes: int, shots: Sequence[int], seeds: Sequence[int]
) -> dict[int, list[Labelled]]:
    """Number of shots -> the few pictures of each seed. Raises DataError as `few_shot`."""
    require_one_width(train, test)
    if not shots or min(shots) < 1 or not seeds:
        raise DataError(
            f"few-shot: shots {list(shots)}, seeds {list(seeds)}; want at least one of each, shots from 1 up"
        )
    require_every_class(train, num_classes)
    orders = {seed: few_of_each(train.labels, num_classes, seed) for seed in seeds}
    return {
        number: [train.subset(np.concatenate([rows[:number] for rows in orders[seed]])) for seed in seeds]
        for number in shots
    }


def _whitened(
    rows: NDArray[np.float32] | NDArray[np.float64], mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    white = np.full((rows.shape[0], rows.shape[1] + 1), BIAS)
    white[:, :-1] = (rows - mean) / deviation
    return white
