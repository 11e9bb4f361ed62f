"""Task `fine_tuning` of a suite: the image tower is trained on a set's split `reference` and answers its pictures.

A killed run resumes: its checkpoints are in `paths.checkpoints` beside those of training, under a key of recipe, seed,
model, pictures and code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from align.config.model import ModelConfig
from align.config.suite import FineTuningSettings
from align.durable.spool import Spool
from align.errors import AlignError, ConfigError
from align.evaluate.fine_tuning.pictures import Pictures
from align.evaluate.fine_tuning.recipe import FINE_GRAINED, IMAGENET, SMALL, Recipe, resized, shortened
from align.evaluate.fine_tuning.tune import Machine, Run, fine_tune
from align.evaluate.protocols.labelled import accuracy
from align.evaluate.protocols.recall import Direction, Score
from align.formats.evaluation_set import EvaluationSet
from align.formats.model_folder import library_model, model_digest, read_config
from align.model.dual_encoder import AnyImageTower, load_model
from align.statistics.intervals import Scored
from align.statistics.paired import Difference, Part, difference

_PRESETS = {"imagenet": IMAGENET, "fine_grained": FINE_GRAINED, "small": SMALL}
#: Points of the curve in the report.
_POINTS = 100


@dataclass(frozen=True)
class Tuner:
    """What fine-tuning needs beside a set.

    Attributes:
        model: the model folder.
        checkpoints: a folder, for those of each run.
    """

    model: Path
    checkpoints: Path

    def recipe(self, settings: FineTuningSettings) -> Recipe:
        """The preset with the changes that a suite asks. Raises ConfigError if it is not ours, or as `read_config`."""
        if (library := library_model(self.model)) is not None:
            raise ConfigError(f"{self.model}: a model of {library}; task fine_tuning trains our own: leave it out")
        return recipe_of(settings, read_config(self.model).model)


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning gives.

    Attributes:
        recipe: how it was done.
        runs: answers and losses of each seed.
        score: the mean accuracy of the runs.
        right: (num_queries,) the share of runs that answer each picture rightly.
        minus_knn: accuracy minus that of the nearest neighbour on the same pictures, with a two-sided 95 % interval;
            None if that was not measured.
    """

    recipe: Recipe
    runs: list[Run]
    score: Score
    right: NDArray[np.float64]
    minus_knn: Difference | None

    def curve(self, run: int = 0) -> list[tuple[int, float]]:
        """(steps done, mean loss of the steps since the point before) at up to 100 points."""
        losses = np.asarray(self.runs[run].losses)
        ends = np.unique(np.linspace(0, len(losses), min(_POINTS, len(losses)) + 1).astype(np.int64))
        return [(int(end), float(losses[start:end].mean())) for start, end in pairwise(ends)]

    def described(self) -> dict[str, Any]:
        """For the report: recipe, curves and the difference to the nearest neighbour."""
        curves = [[[step, round(loss, 6)] for step, loss in self.curve(run)] for run in range(len(self.runs))]
        found: dict[str, Any] = {"recipe": asdict(self.recipe), "curves": curves}
        if (one := self.minus_knn) is not None:
            found["minus_knn"] = {name: round(getattr(one, name), 6) for name in ("value", "low", "high")}
        return found


@dataclass(frozen=True)
class Task:
    """The pictures of a set and their classes.

    Attributes:
        source: the set; all of its pictures decode.
        known, asked: positions of the pictures to learn from, and of those to answer, increasing.
        known_labels, labels: their classes, as numbers.
        clusters: what is independent, of `asked`.
        knn: the nearest neighbour's ranks of `asked`, if they were measured.
    """

    source: EvaluationSet
    known: Sequence[int]
    asked: Sequence[int]
    known_labels: Sequence[int]
    labels: Sequence[int]
    clusters: Sequence[Hashable]
    knn: Direction | None


def recipe_of(settings: FineTuningSettings, model: ModelConfig) -> Recipe:
    """The recipe of a suite's settings for a model of this shape. Its crops are as large a share as in pre-training."""
    recipe = replace(_PRESETS[settings.preset], crop=model.image_px / model.resize_px)
    train_px = model.image_px if settings.preset == "small" and settings.train_px is None else settings.train_px
    if train_px is not None:
        recipe = resized(recipe, train_px)
    if settings.test_px is not None:
        recipe = replace(recipe, test_px=settings.test_px)
    if settings.epochs is not None:
        recipe = shortened(recipe, settings.epochs)
    return recipe if settings.runs is None else replace(recipe, num_runs=settings.runs)


def fine_tuned(settings: FineTuningSettings, task: Task, tuner: Tuner, *, num_resamples: int, seed: int) -> FineTuned:
    """Trains and answers. Pictures are copied to a file without a name first: training reads them in another order.

    Args:
        settings: of the suite.
        task: pictures and classes.
        tuner: model and checkpoints.
        num_resamples, seed: of the interval, which covers the choice of test pictures only.

    Raises:
        AlignError: as `align.evaluate.fine_tuning.tune.tune`; the message names the set and the task.
    """
    source, recipe, num_classes = task.source, tuner.recipe(settings), len(task.source.classes)
    machine = Machine(part=min(settings.part, recipe.batch_size), num_threads=os.cpu_count() or 1)
    with Spool(tuner.checkpoints) as spool:
        total = hashlib.sha256(repr(list(task.known_labels)).encode())
        for _, picture in source.read([*task.known]):
            total.update(hashlib.sha256(picture).digest())
            spool.add(picture)
        for _, picture in source.read([*task.asked]):
            spool.add(picture)
        number = len(task.known)
        lock = Lock()
        train = Pictures(f"{source.name}, reference", _Kept(spool, lock, 0, number), np.asarray(task.known_labels))
        test = Pictures(
            f"{source.name}, query", _Kept(spool, lock, number, len(task.asked)), np.asarray(task.labels), task.clusters
        )
        try:
            runs = fine_tune(
                lambda: _tower(tuner.model), (train, test), num_classes, recipe,
                checkpoints=tuner.checkpoints, machine=machine,
                inputs={"model": model_digest(tuner.model), "pictures": total.hexdigest()},
            )  # fmt: skip
        except AlignError as error:
            raise type(error)(f"evaluation set {source.name}: fine_tuning: {error}") from None
    score = accuracy([run.answers for run in runs], test, num_classes, num_resamples=num_resamples, seed=seed)
    right = np.asarray(np.mean([run.answers == test.labels for run in runs], axis=0), dtype=np.float64)
    minus = None
    if task.knn is not None:
        gained = Scored(right - (task.knn.ranks == 1), [*task.clusters])
        minus = difference([Part(source.name, 1.0, gained)], confidence=0.975, seed=seed)
    return FineTuned(recipe, runs, score, right, minus)


class _Kept(Sequence[bytes]):
    """Some pictures of a spool, for any number of threads."""

    def __init__(self, spool: Spool, lock: Lock, first: int, number: int) -> None:
        self._spool, self._lock, self._first, self._number = spool, lock, first, number

    def __len__(self) -> int:
        return self._number

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self._number))]
        with self._lock:
            return next(self._spool.read([self._first + index]))


def _tower(model: Path) -> AnyImageTower:
    return load_model(model).vision_model.to("cuda" if torch.cuda.is_available() else "cpu")
