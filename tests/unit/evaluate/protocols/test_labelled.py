import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.labelled import UNDECIDED, Labelled, accuracy

LABELS = np.array([0, 1, 2, 0])
FEATURES = np.eye(4, 3, dtype=np.float32)


@pytest.mark.parametrize(("features", "labels", "message"), [
    (FEATURES[0], LABELS, r"train: features of shape \(3,\), float32; want \(images, width\) floats"),
    (FEATURES[:0], LABELS[:0], r"train: features of shape \(0, 3\)"),
    (FEATURES.astype(int), LABELS, r"train: features of shape \(4, 3\), int64"),
    (FEATURES, LABELS[:3], r"train: 4 images, but labels of shape \(3,\)"),
    (FEATURES, LABELS - 1, "train: labels must be integers from 0 up"),
    (FEATURES, LABELS / 2, "train: labels must be integers from 0 up"),
])  # fmt: skip
def test_what_does_not_fit_together_is_one_line(features, labels, message):
    with pytest.raises(DataError, match=f"^{message}") as caught:
        Labelled("train", features, labels)
    assert "\n" not in str(caught.value)


def test_as_many_clusters_as_images():
    with pytest.raises(DataError, match="4 images, but 1 clusters"):
        Labelled("test", FEATURES, LABELS, ["a"])


def test_a_subset_keeps_what_belongs_together():
    part = Labelled("train", FEATURES, LABELS, list("abcd")).subset(np.array([3, 1]))
    assert (part.name, part.labels.tolist(), part.clusters) == ("train", [0, 1], ["d", "b"])
    assert part.rows(slice(None)).tolist() == FEATURES[[3, 1]].tolist()


def test_accuracy_is_the_mean_over_runs_and_undecided_is_wrong():
    test = Labelled("test", FEATURES, LABELS)
    runs = [np.array([0, 1, 2, UNDECIDED]), np.array([0, 1, 0, 1])]
    score = accuracy(runs, test, 3, num_resamples=200, seed=0)
    assert (score.value, score.chance) == (0.625, 1 / 3)
    assert score.low < score.value < score.high
    assert score == accuracy(runs, test, 3, num_resamples=200, seed=0)


def test_the_interval_resamples_clusters():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.integers(0, 2, 100), 4)
    features = np.ones((400, 2), dtype=np.float32)
    alone = Labelled("test", features, np.ones(400, dtype=np.int64))
    together = Labelled("test", features, alone.labels, [index // 4 for index in range(400)])
    narrow, wide = (accuracy([right], test, 2, num_resamples=1000, seed=0) for test in (alone, together))
    assert wide.high - wide.low > 1.6 * (narrow.high - narrow.low)


def test_the_interval_covers():
    """Over 1,000 experiments, pictures of unequal difficulty in pairs that share it, three runs each."""
    rng = np.random.default_rng(0)
    features, labels, pairs = np.ones((200, 1)), np.ones(200, dtype=np.int64), np.arange(200) // 2
    test = Labelled("test", features, labels, pairs.tolist())
    inside = 0
    for _ in range(1000):
        difficulty = rng.beta(1.5, 1.0, 100)[pairs]  # mean 0.6
        runs = [(rng.random(200) < difficulty).astype(np.int64) for _ in range(3)]
        score = accuracy(runs, test, 2, num_resamples=400, seed=0)
        inside += score.low <= 0.6 <= score.high
    assert 930 <= inside <= 970


def test_answers_that_are_not_one_a_picture_are_one_line():
    test = Labelled("test", FEATURES, LABELS)
    with pytest.raises(DataError, match=r"4 images, but answers of shape \(3,\)"):
        accuracy([LABELS[:3]], test, 3, num_resamples=10, seed=0)
    with pytest.raises(DataError, match="no run"):
        accuracy([], test, 3, num_resamples=10, seed=0)
