"""The paper's linear classifier on features that no longer change, by stochastic gradient descent (section 4.3).

On ImageNet: SGD with momentum 0.9, batches of 1,024, 100 epochs, rate 0.1 times 0.2 every 30 epochs, no decay. The
paper draws a new crop in each epoch; here there is one.

Ties: equal logits for two classes are `UNDECIDED`. The seed decides the first weights and the order of pictures; equal
seeds and numbers of threads give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled, largest, require_one_width

#: Rows whose logits are in memory at once.
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Steps:
    """The rate is multiplied by `factor` after every so many epochs."""

    factor: float
    every_epochs: int


@dataclass(frozen=True)
class Recipe:
    """How a linear classifier is fitted.

    Attributes:
        learning_rate: at the start.
        schedule: how it falls.
        epochs: passes over the training pictures.
        batch_size: pictures; the last batch of an epoch may be smaller.
    """

    learning_rate: float
    schedule: Steps
    epochs: int
    batch_size: int

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.epochs >= 1 and self.batch_size >= 1):
            raise DataError(f"linear classifier: rate, epochs and batch size must be positive, not {self}")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.learning_rate * self.schedule.factor ** (epoch // self.schedule.every_epochs)


PAPER = Recipe(0.1, Steps(0.2, 30), epochs=100, batch_size=1024)
#: The paper's schedule on two cores and some thousand pictures: batches that give as many steps as its first epoch.
SMALL = replace(PAPER, epochs=20, schedule=Steps(0.2, 6), batch_size=64)


def answers(weights: NDArray[np.float32], test: Labelled) -> NDArray[np.int64]:
    """(num_test,) the class of the largest logit, or `UNDECIDED`. Raises DataError as `Labelled.rows`."""
    return np.concatenate([largest(_ready(rows) @ weights.T) for _, rows in test.parts(_ROWS_AT_ONCE)])


def fit(train: Labelled, num_classes: int, recipe: Recipe, *, seed: int) -> NDArray[np.float32]:
    """Fits a classifier: (num_classes, width + 1) weights, the bias last; not finite if the fit diverges.

    Args:
        train: the training pictures. Read in batches, so they may be mapped files.
        num_classes: labels are below it.
        recipe: how.
        seed: of first weights and order.

    Raises:
        DataError: a label is not below num_classes, or a feature is NaN or infinite.
    """
    if train.labels.max() >= num_classes:
        raise DataError(f"{train.name}: label {train.labels.max()}, but there are {num_classes} classes")
    generator = torch.Generator().manual_seed(seed)
    bound = train.width**-0.5
    weights = torch.empty(num_classes, train.width + 1).uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.SGD([weights], lr=recipe.learning_rate, momentum=0.9, fused=True)
    for rate, rows, labels in _batches(train, recipe, generator):
        slope = (rows @ weights.T).softmax(dim=1)
        slope[torch.arange(len(rows)), labels] -= 1
        weights.grad = slope.T @ rows / len(rows)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return weights.numpy()


def _batches(
    train: Labelled, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
    """The learning rate, (rows, width + 1) float32 and (rows,) int64 of every step."""
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(train), generator=generator).numpy()
        for start in range(0, len(order), recipe.batch_size):
            which = order[start : start + recipe.batch_size]
            yield recipe.rate(epoch), torch.from_numpy(_ready(train.rows(which))), torch.from_numpy(train.labels[which])


def _ready(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The features with a column of ones for the bias."""
    ready = np.ones((rows.shape[0], rows.shape[1] + 1), dtype=np.float32)
    ready[:, :-1] = rows
    return ready


def frozen_features(
    train: Labelled, test: Labelled, num_classes: int, *, seed: int, recipe: Recipe = PAPER
) -> NDArray[np.int64]:
    """The paper's classifier on frozen features.

    Args:
        train: training pictures.
        test: is answered; its labels are not looked at. The paper's test pictures are larger: 360 px, not 289.
        num_classes: labels are below it.
        seed: of the fit.
        recipe: `PAPER` or `SMALL`, or another.

    Returns:
        (num_test,) classes, or `UNDECIDED`.

    Raises:
        DataError: as `fit`, or the fit diverges.
    """
    require_one_width(train, test)
    weights = fit(train, num_classes, recipe, seed=seed)
    if not np.isfinite(weights).all():
        raise DataError(f"{train.name}: the linear classifier diverges; features are too large for its learning rate")
    return answers(weights, test)
