"""Classifiers that learn from a set's split `reference` and answer its pictures, on embeddings that are there already.

One pass of the model serves all of them. Embeddings are L2-normalised, as the paper's are; the protocols of
`align.evaluate.protocols` say what becomes of them.

Deviations from the paper: its frozen features are those of new crops in each epoch, of 289 px for training and 360 px
for the test; here they are of the one crop and the size that the model is evaluated with. For `frozen` they
are scaled to a mean square of 1: at length 1 gradients are smaller by their width, and the paper's rates learn slowly
(2,230 photographs, 100 epochs: 33 % right, not 39 %).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.config.suite import LinearProbeSettings, SuiteSet, Task
from align.display.console import say
from align.errors import DataError
from align.evaluate.protocols import linear
from align.evaluate.protocols.knn import weighted_vote
from align.evaluate.protocols.labelled import Labelled, accuracy
from align.evaluate.protocols.recall import Direction, Score
from align.formats.query_ranks import RUN

#: The presets of task `frozen`.
_FROZEN = {"paper": linear.PAPER, "small": linear.SMALL}


def learned_scores(
    asked: SuiteSet,
    train: Labelled,
    test: Labelled,
    num_classes: int,
    *,
    num_resamples: int,
    seed: int,
    answered: dict[str, Direction] | None = None,
) -> dict[str, Score]:
    """`linear_probe/accuracy` and so on, of the tasks that a suite asks.

    Args:
        asked: the set's entry in the suite.
        train: pictures to learn from; their clusters say what each shows, so that no draw depends on the order of
            files.
        test: pictures to answer, with what is independent of them.
        num_classes: labels are below it.
        num_resamples, seed: of the intervals, which cover the choice of test pictures only.
        answered: gets protocol -> ranks of single pictures; see `align.formats.query_ranks`.

    Raises:
        DataError: a protocol cannot be run on this set: a class has no picture to learn from, there are too few, or a
            fit diverges. The message names set and task.
    """
    how = {"num_resamples": num_resamples, "seed": seed}
    found: dict[str, Score] = {}

    def score(name: str, runs: Sequence[NDArray[np.int64]]) -> None:
        found[f"{name}/accuracy"] = accuracy(runs, test, num_classes, **how)
        if answered is not None:
            answered.update(ranked(name, runs, test, num_classes))

    task: Task
    for task in asked.tasks:
        try:
            if task == "knn":
                for k in asked.knn.neighbours:
                    score(f"knn_{k}", [weighted_vote(test, train, k=k, temperature=asked.knn.temperature)])
            elif task == "linear_probe":
                score("linear_probe", [_linear_probe(asked.linear_probe, train, test, num_classes)])
            elif task == "frozen":
                known, recipe = _scaled(train.subset(_by_content(train))), _FROZEN[asked.frozen.preset]
                answers = linear.frozen_features(
                    known, _scaled(test), num_classes, seed=asked.frozen.seed, recipe=recipe
                )
                score("frozen", [answers])
        except DataError as error:
            raise DataError(f"evaluation set {asked.name}: {task}: {error}") from None
    return found


def ranked(name: str, runs: Sequence[NDArray[np.int64]], test: Labelled, num_classes: int) -> dict[str, Direction]:
    """Protocol -> ranks of single pictures: `name`, or `name#0` and so on of several runs; see `query_ranks`."""
    return {
        name if len(runs) == 1 else f"{name}{RUN}{number}": _ranked(answers, test, num_classes)
        for number, answers in enumerate(runs)
    }


def _ranked(answers: NDArray[np.int64], test: Labelled, num_classes: int) -> Direction:
    """Answers among `num_classes`, of which one is right: rank 2 stands for any later one."""
    number = len(test.labels)
    clusters = range(number) if test.clusters is None else test.clusters
    return Direction(np.where(answers == test.labels, 1, 2).astype(np.int64), [1] * number, num_classes, clusters)


def _linear_probe(settings: LinearProbeSettings, train: Labelled, test: Labelled, num_classes: int) -> Any:
    recipe = replace(
        linear.CLIP_BENCHMARK,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
    )
    validation, rows = None, _by_content(train)
    if settings.validation_share is not None:
        order = np.random.default_rng(settings.seed).permutation(len(train))
        number = round(settings.validation_share * len(train))
        if not 0 < number < len(train):
            raise DataError(f"{len(train)} pictures leave none to choose the weight decay on")
        validation = train.subset(rows[np.sort(order[:number])], "validation")
        rows = rows[np.sort(order[number:])]
    train = train.subset(rows)
    probe = linear.linear_probe(train, validation, test, num_classes, seed=settings.seed, recipe=recipe)
    say(f"evaluate: {train.name}: linear probe with a weight decay of {probe.decay:.3g}, of {len(probe.tried)} tried")
    return probe.answers


def _by_content(train: Labelled) -> NDArray[np.int64]:
    """The rows in an order that does not depend on the names of files."""
    content: Any = train.clusters or range(len(train))
    return np.array(sorted(range(len(train)), key=lambda row: (content[row], train.labels[row])))


def _scaled(split: Labelled) -> Labelled:
    """Features of mean square 1, of length 1 before."""
    return replace(split, features=np.asarray(split.features, dtype=np.float32) * np.float32(split.width**0.5))
