"""Task `fine_tuning` of a suite: the image tower is trained on a set's split `reference` and answers its pictures.

All of its pictures are in memory, as encoded files. A killed evaluation begins again.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from align.config.model import ModelConfig
from align.config.suite import FineTuningSettings
from align.errors import AlignError, ConfigError
from align.evaluate.fine_tuning.pictures import Pictures
from align.evaluate.fine_tuning.recipe import FINE_GRAINED, IMAGENET, SMALL, Recipe, resized, shortened
from align.evaluate.fine_tuning.tune import Machine, fine_tune
from align.evaluate.protocols.labelled import accuracy
from align.evaluate.protocols.recall import Direction, Score
from align.formats.evaluation_set import EvaluationSet
from align.formats.model_folder import library_model, read_config
from align.model.dual_encoder import load_model
from align.statistics.intervals import Scored
from align.statistics.paired import Difference, Part, difference

_PRESETS = {"imagenet": IMAGENET, "fine_grained": FINE_GRAINED, "small": SMALL}


@dataclass(frozen=True)
class FineTuned:
    """What fine-tuning gives.

    Attributes:
        recipe: how it was done.
        runs: (num_queries,) the answers of each seed.
        score: the mean accuracy of the runs.
        right: (num_queries,) the share of runs that answer each picture rightly.
        minus_knn: accuracy minus that of the nearest neighbour on the same pictures, with a two-sided 95 % interval;
            None if that was not measured.
    """

    recipe: Recipe
    runs: list[NDArray[np.int64]]
    score: Score
    right: NDArray[np.float64]
    minus_knn: Difference | None

    def described(self) -> dict[str, Any]:
        """For the report: recipe, and the difference to the nearest neighbour."""
        found: dict[str, Any] = {"recipe": asdict(self.recipe)}
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


def recipe_for(model: Path, settings: FineTuningSettings) -> Recipe:
    """The recipe of a suite's settings for a model folder.

    Raises:
        ConfigError: the model is not ours.
        DataError, FormatError: as `read_config`.
    """
    if (library := library_model(model)) is not None:
        raise ConfigError(f"{model}: a model of {library}; task fine_tuning trains our own: leave it out")
    return recipe_of(settings, read_config(model).model)


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


def fine_tuned(settings: FineTuningSettings, task: Task, model: Path, *, num_resamples: int, seed: int) -> FineTuned:
    """Trains and answers.

    Args:
        settings: of the suite.
        task: pictures and classes.
        model: its folder.
        num_resamples, seed: of the interval, which covers the choice of test pictures only.

    Raises:
        AlignError: as `align.evaluate.fine_tuning.tune.tune`; the message names the set and the task.
    """
    source, recipe, num_classes = task.source, recipe_for(model, settings), len(task.source.classes)
    machine = Machine(part=min(settings.part, recipe.batch_size), num_threads=os.cpu_count() or 1)
    known, asked = ([picture for _, picture in source.read([*part])] for part in (task.known, task.asked))
    train = Pictures(f"{source.name}, reference", known, np.asarray(task.known_labels))
    test = Pictures(f"{source.name}, query", asked, np.asarray(task.labels), task.clusters)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        runs = fine_tune(lambda: load_model(model).vision_model.to(device), (train, test), num_classes, recipe, machine)
    except AlignError as error:
        raise type(error)(f"evaluation set {source.name}: fine_tuning: {error}") from None
    score = accuracy(runs, test, num_classes, num_resamples=num_resamples, seed=seed)
    right = np.asarray(np.mean([answers == test.labels for answers in runs], axis=0), dtype=np.float64)
    minus = None
    if task.knn is not None:
        gained = Scored(right - (task.knn.ranks == 1), [*task.clusters])
        minus = difference([Part(source.name, 1.0, gained)], confidence=0.975, seed=seed)
    return FineTuned(recipe, runs, score, right, minus)
