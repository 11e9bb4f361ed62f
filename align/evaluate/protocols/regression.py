"""MTEB's few-shot classification of images (github.com/embeddings-benchmark/mteb, `AbsTaskClassification`).

scikit-learn's logistic regression with its L2 penalty (C = 1) and at most 100 iterations, on 16 pictures a class. Five
draws: all pictures are shuffled with seed 42, those of one draw again for the next, and the first 16 of each class are
taken. The accuracy is the mean over the draws.

Ties: equal scores of two classes are `UNDECIDED`. Equal seeds give equal draws, and equal bytes.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled, largest, require_every_class, require_one_width

PER_CLASS, NUM_DRAWS, NUM_ITERATIONS, SEED = 16, 5, 100, 42
#: Test rows that are in memory at once.
_BLOCK = 8192


def few_shot_regression(
    train: Labelled, test: Labelled, num_classes: int, *, per_class: int = PER_CLASS, num_draws: int = NUM_DRAWS,
    seed: int = SEED,
) -> list[NDArray[np.int64]]:  # fmt: skip
    """Answers from a few pictures a class.

    Args:
        train: from which the few are drawn.
        test: is answered; its labels are not looked at.
        num_classes: labels of train are below it; at least two.
        per_class: pictures a class; a class with fewer gives all that it has.
        num_draws: draws.
        seed: of the draws.

    Returns:
        For each draw (num_test,) classes, or `UNDECIDED`.

    Raises:
        DataError: splits do not fit together, a class has no picture, or a feature is NaN or infinite.
    """
    if num_classes < 2 or per_class < 1 or num_draws < 1:
        raise DataError(
            f"regression: {num_classes} classes, {per_class} pictures each, {num_draws} draws; want 2, 1, 1"
        )
    require_one_width(train, test)
    require_every_class(train, num_classes)
    answers, order = [], np.arange(len(train))
    for _ in range(num_draws):
        np.random.RandomState(seed).shuffle(order)  # MTEB's generator
        first = [np.flatnonzero(train.labels[order] == label)[:per_class] for label in range(num_classes)]
        few = order[np.sort(np.concatenate(first))]
        fitted = LogisticRegression(max_iter=NUM_ITERATIONS)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # 100 iterations are the protocol
            fitted.fit(train.rows(few), train.labels[few])
        answers.append(np.concatenate([largest(_scores(fitted, rows)) for _, rows in test.parts(_BLOCK)]))
    return answers


def _scores(fitted: LogisticRegression, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(num_rows, num_classes); of two classes scikit-learn gives the score of the second."""
    scores = np.asarray(fitted.decision_function(rows), dtype=np.float64)
    return scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)
