from collections import Counter

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.labelled import Labelled, accuracy
from align.evaluate.protocols.regression import few_shot_regression

CLASSES = 4


def drawn(number: int, seed: int, *, name: str = "train", width: int = 12) -> Labelled:
    """Clusters that overlap."""
    rng = np.random.default_rng([7, seed])
    centres = np.random.default_rng(1).normal(size=(CLASSES, width))
    labels = np.arange(number) % CLASSES
    return Labelled(name, (centres[labels] + rng.normal(size=(number, width))).astype(np.float32), labels)


def regression_by_definition(few: Labelled, test: Labelled) -> np.ndarray:
    """Newton's method on |w|^2 / 2 + cross-entropy, in float64; the bias has no penalty."""
    known = np.hstack([few.features, np.ones((len(few), 1))]).astype(np.float64)
    wanted = np.eye(CLASSES)[few.labels]
    penalty = np.ones(known.shape[1])
    penalty[-1] = 1e-9  # else adding a constant to all classes would change nothing
    weights = np.zeros((known.shape[1], CLASSES))
    for _ in range(50):
        scores = known @ weights
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        slope = known.T @ (shares - wanted) + penalty[:, None] * weights
        curves = np.einsum("ni,nc,ncd,nj->cidj", known, shares, np.eye(CLASSES) - shares[:, None, :], known)
        size = weights.size
        curve = curves.reshape(size, size) + np.diag(np.tile(penalty, CLASSES))
        weights -= np.linalg.solve(curve, slope.T.ravel()).reshape(CLASSES, -1).T
    return np.hstack([test.features, np.ones((len(test), 1))]) @ weights


def test_the_regression_is_that_of_its_definition_on_mtebs_draws() -> None:
    train, test = drawn(200, 0), drawn(300, 1, name="test")
    runs = few_shot_regression(train, test, CLASSES, num_draws=2)
    order = list(range(200))
    for run in runs:
        np.random.RandomState(42).shuffle(order)
        counts, taken = Counter[int](), []
        for row in order:
            counts[int(train.labels[row])] += 1
            if counts[int(train.labels[row])] <= 16:
                taken.append(row)
        expected = regression_by_definition(train.subset(np.array(taken)), test).argmax(axis=1)
        assert np.mean(run == expected) > 0.995
    assert runs[0].tolist() != runs[1].tolist()
    assert accuracy(runs, test, CLASSES, num_resamples=100, seed=0).low > 0.6
    again = few_shot_regression(train, test, CLASSES, num_draws=2)
    assert [run.tobytes() for run in again] == [run.tobytes() for run in runs]


def test_the_regression_knows_two_classes_and_refuses_one() -> None:
    train, test = drawn(60, 0), drawn(60, 1)
    two = Labelled("train", train.features, train.labels % 2)
    assert set(few_shot_regression(two, test, 2)[0].tolist()) <= {0, 1}
    with pytest.raises(DataError, match="1 classes, 16 pictures each, 5 draws; want 2, 1, 1"):
        few_shot_regression(Labelled("train", train.features, train.labels * 0), test, 1)
    with pytest.raises(DataError, match="1 of 5 classes have no picture"):
        few_shot_regression(train, test, 5)
    with pytest.raises(DataError, match="12 wide, those of test 3"):
        few_shot_regression(train, Labelled("test", test.features[:, :3], test.labels), CLASSES)
    train.features[:, 3] = np.inf
    with pytest.raises(DataError, match=r"^train: features that are NaN or infinite"):
        few_shot_regression(train, test, CLASSES)
