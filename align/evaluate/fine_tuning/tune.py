"""The loop of fine-tuning for classification. A killed one begins again.

Order of a step: batch of step s -> forward -> loss -> gradients -> rates of s -> update. Batches are functions of the
step. A batch may be computed in parts: gradients are summed, and batch-norm works over groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from align.display.console import track
from align.errors import ConfigError, DataError, NonFiniteLossError
from align.evaluate.fine_tuning.pictures import Crops, Pictures, TrainingBatches
from align.evaluate.fine_tuning.recipe import Phase, Recipe, View
from align.evaluate.protocols.labelled import largest
from align.model.batch_norm import BatchNorm2d
from align.model.dual_encoder import AnyImageTower
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.statistics.randomness import permutation

MOMENTUM = 0.9
#: Batch-norm statistics are estimated from at most this many training pictures.
STATISTICS_IMAGES = 1024


@dataclass(frozen=True)
class Machine:
    """How the work is done; none of it changes what is computed beyond rounding.

    Attributes:
        part: pictures in one forward pass; a multiple of the batch-norm group.
        num_threads: decode pictures.
    """

    part: int
    num_threads: int


class Classifier(nn.Module):
    """The image tower's pooled features and a linear head on them, on the tower's device."""

    def __init__(self, tower: AnyImageTower, num_classes: int, seed: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(tower.width, num_classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for param in self.head.parameters():
                param.uniform_(-(tower.width**-0.5), tower.width**-0.5, generator=generator)
        self.device = next(tower.parameters()).device
        self.head.to(self.device)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, num_classes) logits."""
        logits: Tensor = self.head(self.tower(pixels))
        return logits

    @torch.inference_mode()
    def answers(self, pictures: Pictures, view: View, machine: Machine) -> NDArray[np.int64]:
        """(num_images,) the class of the largest logit of each centre crop, or `UNDECIDED`.

        Raises:
            DataError: a picture does not decode, or a logit is NaN or infinite.
        """
        self.eval()
        found = []
        with ThreadPoolExecutor(machine.num_threads) as pool:
            for rows in np.array_split(np.arange(len(pictures.images)), -(-len(pictures.images) // machine.part)):
                logits = self(to_pixels(pictures.centre(rows, view, pool)).to(self.device)).cpu().numpy()
                if not np.isfinite(logits).all():
                    raise DataError(f"{pictures.name}: the classifier's logits are not finite; its training diverged")
                found.append(largest(logits))
        return np.concatenate(found)


def tune(
    tower: AnyImageTower, pictures: Pictures, num_classes: int, recipe: Recipe, *, seed: int, machine: Machine
) -> Classifier:
    """Trains a classifier.

    Args:
        tower: pre-trained; it is changed.
        pictures: the training split.
        num_classes: labels are below it.
        recipe: how.
        seed: of the head's first weights, order and crops.
        machine: how the work is done.

    Raises:
        ConfigError: batch or part do not fit the batch-norm groups.
        DataError: a label is not below num_classes, or a picture does not decode.
        NonFiniteLossError: the loss became NaN or infinite.
    """
    _require_fit(tower, pictures, num_classes, recipe, machine)
    model = Classifier(tower, num_classes, seed)
    with ThreadPoolExecutor(machine.num_threads) as pool:
        batches = TrainingBatches(pictures, recipe.batch_size, seed, pool)
        first = 0
        for phase in recipe.phases:
            length = phase.length(batches.per_epoch)
            optimiser = _optimiser(model, phase, recipe)
            _set_mode(model, phase, recipe)
            steps = batches.steps(first, first + length, recipe.view(phase.train_px))
            for step, (crops, labels) in enumerate(track(steps, what="fine-tuning: steps", total=length)):
                scale = phase.scale(step, batches.per_epoch)
                for group in optimiser.param_groups:
                    group["lr"] = group["peak"] * scale
                loss = _update(model, optimiser, crops, labels, phase, machine.part)
                if not math.isfinite(loss):
                    raise NonFiniteLossError(
                        f"{pictures.name}: the loss is {loss} at step {first + step + 1} of fine-tuning; lower the "
                        "learning rate"
                    )
            first += length
        if not recipe.freeze_statistics and any(phase.tower_rate for phase in recipe.phases):
            _estimate(tower, pictures, recipe.view(recipe.phases[-1].train_px), machine, pool)
    return model.eval()


def _require_fit(tower: AnyImageTower, pictures: Pictures, num_classes: int, recipe: Recipe, machine: Machine) -> None:
    if pictures.labels.max() >= num_classes:
        raise DataError(f"{pictures.name}: label {pictures.labels.max()}, but there are {num_classes} classes")
    groups = {norm.group for norm in tower.modules() if isinstance(norm, BatchNorm2d)}
    if recipe.freeze_statistics or not any(phase.tower_rate for phase in recipe.phases):
        return
    for group in groups:
        for size in (recipe.batch_size, machine.part):
            if size > group and size % group:
                raise ConfigError(f"fine-tuning: {size} pictures are no multiple of the batch-norm group {group}")


def _optimiser(model: Classifier, phase: Phase, recipe: Recipe) -> torch.optim.SGD:
    groups = [{"params": list(model.head.parameters()), "peak": phase.head_rate}]
    if phase.tower_rate:
        groups.append({"params": list(model.tower.parameters()), "peak": phase.tower_rate})
    return torch.optim.SGD(groups, lr=phase.head_rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay)


def _set_mode(model: Classifier, phase: Phase, recipe: Recipe) -> None:
    model.train()
    model.tower.train(bool(phase.tower_rate))
    if recipe.freeze_statistics:
        for norm in model.tower.modules():
            if isinstance(norm, BatchNorm2d):
                norm.eval()


def _update(
    model: Classifier, optimiser: torch.optim.SGD, crops: Crops, labels: NDArray[np.int64], phase: Phase, part: int
) -> float:
    """One step; the mean loss over the batch before it. Weights stay as they are if it is not finite."""
    optimiser.zero_grad()
    total = 0.0
    for start in range(0, len(labels), part):
        rows = slice(start, start + part)
        with torch.set_grad_enabled(bool(phase.tower_rate)):
            features = model.tower(to_pixels(crops[rows]).to(model.device))
        wanted = torch.from_numpy(labels[rows]).to(model.device)
        loss = F.cross_entropy(model.head(features), wanted, reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        total += float(loss.detach())
    if math.isfinite(total):
        optimiser.step()
    return total


def _estimate(tower: AnyImageTower, pictures: Pictures, view: View, machine: Machine, pool: ThreadPoolExecutor) -> None:
    """Sets batch-norm's statistics from centre crops of training pictures.

    They are drawn, since the pictures of a class lie together: a group of one class varies less than those of training.
    """
    group = max((norm.group for norm in tower.modules() if isinstance(norm, BatchNorm2d)), default=1)
    number = len(pictures.images)
    count = max(min(number, STATISTICS_IMAGES) // group * group, min(number, group))
    chosen = permutation(0, 0, number)[:count]
    size = max(group, machine.part // group * group)
    parts = [chosen[start : start + size] for start in range(0, count, size)]
    device = next(tower.parameters()).device
    estimate_statistics(tower, (to_pixels(pictures.centre(rows, view, pool)).to(device) for rows in parts))


def fine_tune(
    load: Callable[[], AnyImageTower], splits: tuple[Pictures, Pictures], num_classes: int, recipe: Recipe,
    machine: Machine,
) -> list[NDArray[np.int64]]:  # fmt: skip
    """The runs of a recipe: each trains from the pre-trained tower with a seed of its own, and answers the test.

    Args:
        load: a pre-trained tower, once for each run.
        splits: training pictures, and those of the test, whose labels are not looked at.
        num_classes: labels are below it.
        recipe: how.
        machine: how the work is done.

    Returns:
        For each seed (num_test,) classes, or `UNDECIDED`, as `align.evaluate.protocols.labelled.accuracy` takes them.

    Raises:
        AlignError: as `tune`.
    """
    train, test = splits
    return [
        tune(load(), train, num_classes, recipe, seed=seed, machine=machine).answers(
            test, recipe.view(recipe.test_px), machine
        )
        for seed in range(recipe.num_runs)
    ]
