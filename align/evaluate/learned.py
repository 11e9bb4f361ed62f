"""Classifiers that learn from a set's split `reference` and answer its pictures, on embeddings that are there already.

One pass of the model serves all of them. Embeddings are L2-normalised, as the paper's are.

Deviations from the paper: its frozen features are those of new crops in each epoch, of 289 px for training and 360 px
for the test; here they are of the one crop and the size that the model is evaluated with. They are scaled to a mean
square of 1: at length 1 gradients are smaller by their width, and the paper's rates learn slowly (2,230 photographs,
100 epochs: 33 % right, not 39 %).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.config.suite import SuiteSet
from align.errors import DataError
from align.evaluate.protocols import linear
from align.evaluate.protocols.labelled import Labelled
from align.evaluate.protocols.recall import Direction
from align.formats.query_ranks import RUN

#: The presets of task `frozen`.
_FROZEN = {"paper": linear.PAPER, "small": linear.SMALL}


def frozen_answers(asked: SuiteSet, train: Labelled, test: Labelled, num_classes: int) -> NDArray[np.int64]:
    """(num_test,) the answers of task `frozen`.

    Args:
        asked: the set's entry in the suite.
        train: pictures to learn from; their clusters say what each shows, so that no draw depends on the order of
            files.
        test: pictures to answer.
        num_classes: labels are below it.

    Raises:
        DataError: the fit diverges; the message names set and task.
    """
    known, recipe = _scaled(train.subset(_by_content(train))), _FROZEN[asked.frozen.preset]
    try:
        return linear.frozen_features(known, _scaled(test), num_classes, seed=asked.frozen.seed, recipe=recipe)
    except DataError as error:
        raise DataError(f"evaluation set {asked.name}: frozen: {error}") from None


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


def _by_content(train: Labelled) -> NDArray[np.int64]:
    """The rows in an order that does not depend on the names of files."""
    content: Any = train.clusters or range(len(train))
    return np.array(sorted(range(len(train)), key=lambda row: (content[row], train.labels[row])))


def _scaled(split: Labelled) -> Labelled:
    """Features of mean square 1, of length 1 before."""
    return replace(split, features=np.asarray(split.features, dtype=np.float32) * np.float32(split.width**0.5))
