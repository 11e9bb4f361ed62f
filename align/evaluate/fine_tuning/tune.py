"""The loop of fine-tuning for classification, checkpointed; a killed run resumes to the bytes of a whole one.

Order of a step, and with it of resuming: batch of step s -> forward -> loss -> gradients -> rates of s -> update ->
s + 1 steps are done -> checkpoint. Batches are functions of the step, and a checkpoint holds weights, momentum and the
losses so far, so nothing else must be kept. A batch may be computed in parts: gradients are summed, and batch-norm
works over groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from align.display.console import say
from align.durable.checkpoint import CheckpointFolder, run_key
from align.errors import ConfigError, DataError, NonFiniteLossError
from align.evaluate.fine_tuning.pictures import Crops, Pictures, TrainingBatches
from align.evaluate.fine_tuning.recipe import Phase, Recipe, View
from align.evaluate.protocols.labelled import largest
from align.model.batch_norm import BatchNorm2d
from align.model.dual_encoder import AnyImageTower
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.project.provenance import digest
from align.statistics.randomness import permutation

MOMENTUM = 0.9
#: Batch-norm statistics are estimated from at most this many training pictures.
STATISTICS_IMAGES = 1024
#: Checkpoints kept of a run: the last, and the one before, should the last be damaged.
_KEEP = 2


@dataclass(frozen=True)
class Machine:
    """How the work is done; none of it changes what is computed beyond rounding.

    Attributes:
        part: pictures in one forward pass; a multiple of the batch-norm group.
        num_threads: decode pictures.
    """

    part: int
    num_threads: int


@dataclass(frozen=True)
class Run:
    """What a run gives.

    Attributes:
        answers: (num_test,) classes, or `UNDECIDED`, as `align.evaluate.protocols.labelled.accuracy` takes them.
        losses: the mean loss of each step.
    """

    answers: NDArray[np.int64]
    losses: list[float]


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
    tower: AnyImageTower, pictures: Pictures, num_classes: int, recipe: Recipe, *, seed: int, folder: CheckpointFolder,
    machine: Machine,
) -> tuple[Classifier, list[float]]:  # fmt: skip
    """Trains a classifier from where its checkpoints end.

    Args:
        tower: pre-trained; it is changed.
        pictures: the training split.
        num_classes: labels are below it.
        recipe: how.
        seed: of the head's first weights, order and crops.
        folder: of this run's checkpoints.
        machine: how the work is done.

    Returns:
        The classifier, and the mean loss of each step.

    Raises:
        ConfigError: batch or part do not fit the batch-norm groups.
        DataError: a label is not below num_classes, or a picture does not decode.
        LockedError: another process trains the same run.
        NonFiniteLossError: the loss became NaN or infinite; earlier checkpoints are kept.
    """
    _require_fit(tower, pictures, num_classes, recipe, machine)
    model = Classifier(tower, num_classes, seed)
    with folder.lock(), ThreadPoolExecutor(machine.num_threads) as pool:
        batches = TrainingBatches(pictures, recipe.batch_size, seed, pool)
        saved = folder.load_latest(model.device)
        step, first = 0, 0
        losses: list[float] = []
        if saved is not None:
            step, losses = saved["step"], list(saved["losses"])
            model.load_state_dict(saved["model"])
            say(f"fine-tuning: resuming after step {step}")
        for number, phase in enumerate(recipe.phases):
            end = first + phase.length(batches.per_epoch)
            if step < end:
                optimiser = _optimiser(model, phase, recipe)
                if saved is not None and saved["phase"] == number:
                    optimiser.load_state_dict(saved["optimiser"])
                _set_mode(model, phase, recipe)
                for crops, labels in batches.steps(step, end, recipe.view(phase.train_px)):
                    scale = phase.scale(step - first, batches.per_epoch)
                    for group in optimiser.param_groups:
                        group["lr"] = group["peak"] * scale
                    loss = _update(model, optimiser, crops, labels, phase, machine.part)
                    if not math.isfinite(loss):
                        folder.wait()
                        raise NonFiniteLossError(
                            f"{pictures.name}: the loss is {loss} at step {step + 1} of fine-tuning; lower the "
                            "learning rate; earlier checkpoints are kept"
                        )
                    losses.append(loss)
                    step += 1
                    if step == end or step % recipe.checkpoint_every_steps == 0:
                        say(f"fine-tuning: step {step}, loss {loss:.3f}")
                        state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                        folder.save(step, {**state, "phase": number, "losses": losses})
            first = end
        folder.wait()
        if not recipe.freeze_statistics and any(phase.tower_rate for phase in recipe.phases):
            _estimate(tower, pictures, recipe.view(recipe.phases[-1].train_px), machine, pool)
    return model.eval(), losses


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
    load: Callable[[], AnyImageTower], splits: tuple[Pictures, Pictures], num_classes: int, recipe: Recipe, *,
    checkpoints: Path, inputs: Mapping[str, str], machine: Machine,
) -> list[Run]:  # fmt: skip
    """The runs of a recipe: each trains from the pre-trained tower with a seed of its own, and answers the test.

    Args:
        load: a pre-trained tower, once for each run.
        splits: training pictures, and those of the test, whose labels are not looked at.
        num_classes: labels are below it.
        recipe: how.
        checkpoints: a folder with one for each run, keyed by recipe, seed, inputs and code.
        inputs: digests of the model and of the training pictures.
        machine: how the work is done.

    Returns:
        One for each seed.

    Raises:
        AlignError: as `tune`.
    """
    train, test = splits
    code = digest("align.evaluate.fine_tuning.tune")
    runs = []
    for seed in range(recipe.num_runs):
        key = run_key({**asdict(recipe), "seed": seed, "num_classes": num_classes, "inputs": dict(inputs)}, code)
        folder = CheckpointFolder(checkpoints / key, _KEEP)
        model, losses = tune(load(), train, num_classes, recipe, seed=seed, folder=folder, machine=machine)
        runs.append(Run(model.answers(test, recipe.view(recipe.test_px), machine), losses))
    return runs
