"""95 % intervals hold the true value in 93 to 97 % of experiments, for each kind of figure and its independent unit.

The worlds are simulated, so that their true values are known. The quick test has 160 experiments: its own error is 1.7
points, so it allows for two of them. The full one has 4,000.
"""

import numpy as np
import pytest

from align.evaluate.protocols.recall import Direction
from align.evaluate.protocols.retrieval import retrieval_scores
from align.evaluate.protocols.zero_shot import classification_scores

#: Draws of an experiment's interval.
RESAMPLES = 300
#: The image of each caption.
IMAGES = np.repeat(np.arange(100), 5).tolist()


def captions(number, unit):
    """100 images with five captions each, which share how hard their image is; two right items a query."""
    rng = np.random.default_rng([0, number])
    hard = np.repeat(rng.beta(2, 1.5, 100), 5)
    return Direction(np.where(rng.random(500) < hard, 1, 4), [2] * 500, 100, unit)


def recall_at_1(number, unit=IMAGES):
    score = retrieval_scores(captions(number, unit), num_resamples=RESAMPLES, seed=number)["recall@1"]
    return score.low, score.high


def per_class(number):
    """30 classes of ten images, from easy to hard."""
    labels = np.repeat(np.arange(30), 10)
    right = np.random.default_rng([1, number]).random(300) < np.linspace(0.1, 0.95, 30)[labels]
    ranked = Direction(np.where(right, 1, 2), [1] * 300, 30, range(300))
    score = classification_scores(ranked, labels.tolist(), num_resamples=RESAMPLES, seed=number)["mean_per_class"]
    return score.low, score.high


def covered(experiment, truth, number):
    inside = 0
    for one in range(number):
        low, high = experiment(one)
        inside += low <= truth <= high
    return inside / number


EASY = 2 / 3.5
CASES = {
    "recall@1, images": (recall_at_1, lambda: EASY),
    "mean per class, images": (per_class, lambda: float(np.linspace(0.1, 0.95, 30).mean())),
}


@pytest.mark.parametrize("case", CASES)
def test_intervals_cover(case):
    experiment, truth = CASES[case]
    assert 0.93 - 0.034 <= covered(experiment, truth(), 160) <= 0.97 + 0.03


@pytest.mark.numerics
@pytest.mark.timeout(1200)  # 4,000 experiments
@pytest.mark.parametrize("case", CASES)
def test_intervals_cover_to_the_percent(case):
    experiment, truth = CASES[case]
    assert 0.93 <= covered(experiment, truth(), 4000) <= 0.97


def test_single_captions_as_units_would_not_cover():
    """The test above can fail: the same experiments with captions for units cover far less."""
    assert covered(lambda number: recall_at_1(number, range(500)), EASY, 150) < 0.91
