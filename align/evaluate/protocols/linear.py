"""Linear classifiers on features that no longer change, by stochastic gradient descent.

Two protocols and their settings:

* `linear_probe`, as CLIP_benchmark does it (github.com/LAION-AI/CLIP_benchmark): L2-normalised features, AdamW, cosine
  to zero, rate 0.1, 10 epochs of batches of 64. The weight decay is one of 97 from 1e-6 to 100, chosen by accuracy on a
  validation split: first seven, then the neighbours of the best at distances of 8, 4, 2 and 1. The classifier is fitted
  again on both splits.
* `frozen_features`, the paper's (section 4.3, ImageNet): SGD with momentum 0.9, batches of 1,024, 100 epochs, rate 0.1
  times 0.2 every 30 epochs, no decay. The paper draws a new crop in each epoch; here there is one.

Several decays are fitted together, as one wide matrix over the same batches. Deviations: weight decay is decoupled from
the gradient in SGD, too, as in AdamW; a decay with which a fit diverges is never chosen (CLIP_benchmark compares its
accuracy, too).

Ties: equal logits for two classes are `UNDECIDED`; of decays that are equally accurate the first that was tried is
taken, the smallest of a round. The seed decides the first weights and the order of pictures; equal seeds and numbers of
threads give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled, largest, require_one_width

#: Rows whose logits are in memory at once.
_BLOCK = 8192


@dataclass(frozen=True)
class Steps:
    """The rate is multiplied by `factor` after every so many epochs."""

    factor: float
    every_epochs: int


@dataclass(frozen=True)
class Recipe:
    """How a linear classifier is fitted.

    Attributes:
        optimizer: AdamW with torch's defaults, or SGD with momentum 0.9.
        learning_rate: at the start.
        schedule: None is a cosine from the rate to zero, over all steps.
        epochs: passes over the training pictures.
        batch_size: pictures; the last batch of an epoch may be smaller.
        unit_rows: L2-normalise features first.
    """

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    schedule: Steps | None
    epochs: int
    batch_size: int
    unit_rows: bool

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and self.epochs >= 1 and self.batch_size >= 1):
            raise DataError(f"linear classifier: rate, epochs and batch size must be positive, not {self}")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0."""
        if self.schedule is None:
            share = step / (self.epochs * steps_per_epoch)
            return 0.5 * (1 + math.cos(math.pi * share)) * self.learning_rate
        passed = step // steps_per_epoch // self.schedule.every_epochs
        return self.learning_rate * self.schedule.factor**passed


CLIP_BENCHMARK = Recipe("adamw", 0.1, None, epochs=10, batch_size=64, unit_rows=True)
PAPER = Recipe("sgd", 0.1, Steps(0.2, 30), epochs=100, batch_size=1024, unit_rows=False)
#: The paper's schedule on two cores and some thousand pictures: batches that give as many steps as its first epoch.
SMALL = replace(PAPER, epochs=20, schedule=Steps(0.2, 6), batch_size=64)

DECAYS: tuple[float, ...] = tuple(np.logspace(-6, 2, 97).tolist())
_COARSE, _SPANS = range(0, 97, 16), (8, 4, 2, 1)


@dataclass(frozen=True)
class Linear:
    """A fitted classifier.

    Attributes:
        weights: (num_classes, width + 1) float32, the bias last.
        unit_rows: features are L2-normalised first.
    """

    weights: NDArray[np.float32]
    unit_rows: bool

    @property
    def diverged(self) -> bool:
        """Whether a weight is NaN or infinite."""
        return not bool(np.isfinite(self.weights).all())

    def answers(self, test: Labelled) -> NDArray[np.int64]:
        """(num_test,) the class of the largest logit, or `UNDECIDED`. Raises DataError as `Labelled.rows`."""
        found = []
        for _, rows in test.parts(_BLOCK):
            found.append(largest(_ready(rows, self.unit_rows) @ self.weights.T))
        return np.concatenate(found)


def fit(
    train: Labelled, num_classes: int, recipe: Recipe, *, decays: Sequence[float] = (0.0,), seed: int
) -> list[Linear]:
    """Fits one classifier for each weight decay, all from the same first weights and on the same batches.

    Args:
        train: the training pictures. Read in batches, so they may be mapped files.
        num_classes: labels are below it.
        recipe: how.
        decays: weight decays; in each step weights shrink by the share rate x decay.
        seed: of first weights and order.

    Raises:
        DataError: a label is not below num_classes, or a feature is NaN or infinite.
    """
    _require_classes(num_classes, train)
    generator = torch.Generator().manual_seed(seed)
    bound = train.width**-0.5
    first = torch.empty(num_classes, train.width + 1).uniform_(-bound, bound, generator=generator)
    weights = first.repeat(len(decays), 1)
    shrink = torch.tensor(decays, dtype=torch.float32).repeat_interleave(num_classes)[:, None]
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.Adam([weights], fused=True)  # the decay is applied here, one for each row
    else:
        optimizer = torch.optim.SGD([weights], lr=recipe.learning_rate, momentum=0.9, fused=True)
    per_epoch = -(-len(train) // recipe.batch_size)
    for step, (rows, labels) in enumerate(_batches(train, recipe, generator)):
        rate = recipe.rate(step, per_epoch)
        slope = (rows @ weights.T).view(len(rows), len(decays), num_classes).softmax(dim=2)
        slope[torch.arange(len(rows)), :, labels] -= 1
        weights.grad = slope.view(len(rows), -1).T @ rows / len(rows)
        weights.mul_(1 - rate * shrink)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    fitted = weights.view(len(decays), num_classes, -1).numpy()
    return [Linear(np.ascontiguousarray(one), recipe.unit_rows) for one in fitted]


def _batches(
    train: Labelled, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(rows, width + 1) float32 and (rows,) int64 of every step."""
    for _ in range(recipe.epochs):
        order = torch.randperm(len(train), generator=generator).numpy()
        for start in range(0, len(order), recipe.batch_size):
            which = order[start : start + recipe.batch_size]
            rows = _ready(train.rows(which), recipe.unit_rows)
            yield torch.from_numpy(rows), torch.from_numpy(train.labels[which])


def _ready(rows: NDArray[np.float32], unit_rows: bool) -> NDArray[np.float32]:
    """The features with a column of ones for the bias."""
    ready = np.ones((rows.shape[0], rows.shape[1] + 1), dtype=np.float32)
    ready[:, :-1] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) if unit_rows else rows
    return ready


def _require_classes(num_classes: int, split: Labelled) -> None:
    if split.labels.max() >= num_classes:
        raise DataError(f"{split.name}: label {split.labels.max()}, but there are {num_classes} classes")


@dataclass(frozen=True)
class Probe:
    """What a probe answered.

    Attributes:
        answers: (num_test,) classes, or `UNDECIDED`.
        decay: the weight decay of the classifier.
        tried: weight decay -> accuracy on the validation split; those that diverged are left out.
    """

    answers: NDArray[np.int64]
    decay: float
    tried: dict[float, float]


def linear_probe(
    train: Labelled, validation: Labelled | None, test: Labelled, num_classes: int, *, seed: int,
    recipe: Recipe = CLIP_BENCHMARK,
) -> Probe:  # fmt: skip
    """CLIP_benchmark's linear probe.

    Args:
        train: training pictures.
        validation: the decay is chosen on it, and the classifier is fitted on both splits; without it there is no decay
            and no choice.
        test: is answered; its labels are not looked at.
        num_classes: labels of the other splits are below it.
        seed: of every fit.
        recipe: how.

    Raises:
        DataError: splits do not fit together, a feature is NaN or infinite, or the fit diverges at every decay.
    """
    require_one_width(train, test)
    tried: dict[float, float] = {}
    decay = 0.0
    if validation is not None:
        _require_classes(num_classes, validation)
        require_one_width(train, validation)
        decay = _search(train, validation, num_classes, recipe, seed, tried)
        train = train.joined(validation, f"{train.name} and {validation.name}")
    return Probe(_answers(train, test, num_classes, recipe, seed, decay), decay, tried)


def _search(
    train: Labelled, validation: Labelled, num_classes: int, recipe: Recipe, seed: int, tried: dict[float, float]
) -> float:
    """The decay with the best accuracy on validation; leaves those of all that were tried."""
    at, known = 0, set[int]()
    for span in (None, *_SPANS):
        around = _COARSE if span is None else sorted({max(at - span, 0), at, min(at + span, len(DECAYS) - 1)})
        new = [one for one in around if one not in known]
        fitted = fit(train, num_classes, recipe, decays=[DECAYS[one] for one in new], seed=seed) if new else []
        for one, classifier in zip(new, fitted, strict=True):
            known.add(one)
            if not classifier.diverged:
                tried[DECAYS[one]] = float(np.mean(classifier.answers(validation) == validation.labels))
        at = max(around, key=lambda one: tried.get(DECAYS[one], -1.0))
    if not tried:
        raise DataError(f"{train.name}: the linear probe diverges at every weight decay; the learning rate is too high")
    return DECAYS[at]


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
    return _answers(train, test, num_classes, recipe, seed, 0.0)


def _answers(
    train: Labelled, test: Labelled, num_classes: int, recipe: Recipe, seed: int, decay: float
) -> NDArray[np.int64]:
    require_one_width(train, test)
    (classifier,) = fit(train, num_classes, recipe, decays=[decay], seed=seed)
    if classifier.diverged:
        raise DataError(f"{train.name}: the linear classifier diverges; features are too large for its learning rate")
    return classifier.answers(test)
