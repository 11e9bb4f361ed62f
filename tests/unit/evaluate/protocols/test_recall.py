"""Recall against matrices worked out by hand."""

from itertools import combinations

import numpy as np
import pytest

from align.evaluate.protocols.recall import Direction, mean_recall, recall, similarities_to
from align.evaluate.protocols.retrieval import best_ranks
from align.formats.query_ranks import CUTS
from align.statistics.chance import chance


def indices(*rows):
    return [np.array(row, dtype=np.int64) for row in rows]


SIMILARITY = np.array([
    [0.9, 0.8, 0.1, 0.0],  # correct 1: one wrong item is nearer -> rank 2
    [0.2, 0.7, 0.6, 0.5],  # correct 2, 3: the better of them has one wrong item before it -> rank 2
    [0.1, 0.2, 0.3, 0.4],  # correct 0, 3: 3 is the nearest of all -> rank 1
    [0.9, 0.8, 0.7, 0.6],  # correct 3: the last -> rank 4
])  # fmt: skip
CORRECT = indices([1], [2, 3], [0, 3], [3])


def asked(similarity, correct):
    return best_ranks(similarity, np.eye(similarity.shape[1]), correct, range(len(similarity)))


def test_ranks_by_hand():
    assert asked(SIMILARITY, CORRECT).ranks.tolist() == [2, 2, 1, 4]


def test_a_tie_counts_by_the_share_of_its_orders():
    one = asked(np.array([[0.5, 0.5, 0.1]]), indices([0]))
    assert (one.ranks.tolist(), one.hits(1).values.tolist(), one.hits(2).values.tolist()) == ([2], [0.5], [1.0])
    two = asked(np.array([[0.5, 0.5, 0.5]]), indices([0, 1]))  # two of three answers are right
    assert two.hits(1).values == pytest.approx(2 / 3, abs=1e-15)
    apart = asked(np.array([[0.5, 0.4, 0.4]]), indices([0]))
    assert apart.ties is None
    assert apart.hits(1).values.tolist() == [1.0]


def test_a_model_that_maps_everything_to_one_point_scores_chance():
    level = asked(np.ones((4, 30)), indices([0], [1, 2], [3, 4, 5], [29]))
    for k in CUTS:
        score = recall(level, k, num_resamples=50, seed=0)
        assert score.value == pytest.approx(score.chance, abs=1e-12)


class Uneven(np.ndarray):
    """A matrix whose products round by where a column stands, as on some CPUs."""

    def __rmatmul__(self, other):
        return other @ np.asarray(self) + 1e-7 * np.arange(self.shape[1])


def test_equal_items_tie_however_a_product_rounds():
    queries, items = np.eye(3), np.eye(3)[[0, 1, 0, 2, 1, 0]]
    found = similarities_to(items.view(Uneven))(queries)
    assert (found[:, [2, 5]] == found[:, :1]).all() and (found[:, 4] == found[:, 1]).all()
    assert np.allclose(found, queries @ items.T, atol=1e-6)


def test_chance_equals_counting_every_draw():
    for num_items, right, k in [(6, 1, 2), (6, 2, 3), (7, 3, 1), (5, 4, 3)]:
        draws = list(combinations(range(num_items), k))
        counted = sum(any(item < right for item in draw) for draw in draws) / len(draws)
        assert chance([right], num_items, k) == pytest.approx(counted, abs=1e-12)


def test_chance_at_its_edges():
    assert chance([1], 100, 10) == pytest.approx(0.1)
    assert chance([1], 4, 10) == 1.0  # fewer items than K
    assert chance([0], 10, 5) == 0.0
    assert chance([1, 3], 10, 1) == pytest.approx(0.2)  # the mean of 0.1 and 0.3


def test_a_random_model_scores_chance():
    rng = np.random.default_rng(1)
    correct = [rng.choice(40, size=1 + index % 4, replace=False) for index in range(4000)]
    direction = asked(rng.normal(size=(4000, 40)), correct)
    for k in CUTS:
        score = recall(direction, k, num_resamples=500, seed=0)
        assert score.low < score.chance < score.high


def test_recall_and_mean_recall_by_hand():
    direction = asked(SIMILARITY, CORRECT)
    assert recall(direction, 1, num_resamples=200, seed=0).value == 0.25
    assert recall(direction, 2, num_resamples=200, seed=0).value == 0.75
    other = Direction(np.array([1, 7]), [1, 1], 20, ["a", "b"])  # recall 0.5, 0.5, 1.0
    score = mean_recall([direction, other], num_resamples=200, seed=0)
    assert score.value == pytest.approx(((0.25 + 1 + 1) / 3 + (0.5 + 0.5 + 1) / 3) / 2)
    assert score.chance == pytest.approx(((0.375 + 1 + 1) / 3 + (0.05 + 0.25 + 0.5) / 3) / 2)
