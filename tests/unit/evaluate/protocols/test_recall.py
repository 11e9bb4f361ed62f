"""Recall against matrices worked out by hand."""

from itertools import combinations

import numpy as np
import pytest

from align.evaluate.protocols.recall import (
    Direction,
    gallery,
    mean_recall,
    ranks,
    ranks_by_embedding,
    recall,
    similarities_to,
)
from align.formats.query_ranks import CUTS
from align.statistics.chance import chance


def indices(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


SIMILARITY = np.array([
    [0.9, 0.8, 0.1, 0.0],  # correct 1: one wrong item is nearer -> rank 2
    [0.2, 0.7, 0.6, 0.5],  # correct 2, 3: the better of them has one wrong item before it -> rank 2
    [0.1, 0.2, 0.3, 0.4],  # correct 0, 3: 3 is the nearest of all -> rank 1
    [0.9, 0.8, 0.7, 0.6],  # correct 3: the last -> rank 4
])  # fmt: skip
CORRECT = indices([1], [2, 3], [0, 3], [3])


def test_ranks_by_hand() -> None:
    assert ranks(SIMILARITY, CORRECT).tolist() == [2, 2, 1, 4]


def test_a_tie_counts_against_the_model() -> None:
    assert ranks(np.array([[0.5, 0.5, 0.1]]), indices([0])).tolist() == [2]
    assert ranks(np.array([[0.5, 0.5, 0.5]]), indices([0, 1])).tolist() == [2]  # equals that are correct do not count
    assert ranks(np.array([[0.5, 0.4, 0.4]]), indices([0])).tolist() == [1]


def test_a_query_without_a_correct_item_can_never_be_answered() -> None:
    assert ranks(np.array([[0.3, 0.2]]), indices([])).tolist() == [3]


class Uneven(np.ndarray):
    """A matrix whose products round by where a column stands, as on some CPUs."""

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        return other @ np.asarray(self) + 1e-7 * np.arange(self.shape[1])


def test_equal_items_tie_however_a_product_rounds() -> None:
    queries, items = np.eye(3), np.eye(3)[[0, 1, 0, 2, 1, 0]]
    found = similarities_to(items.view(Uneven))(queries)
    assert (found[:, [2, 5]] == found[:, :1]).all() and (found[:, 4] == found[:, 1]).all()
    assert np.allclose(found, queries @ items.T, atol=1e-6)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_non_finite_similarities_are_refused(broken: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ranks(np.array([[broken, 0.1]]), indices([1]))


def test_blocks_change_nothing() -> None:
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(2, 37, 8)).astype(np.float32)
    correct = [np.array([index, (index + 5) % 37]) for index in range(37)]
    whole = ranks(queries @ items.T, correct)
    assert (ranks_by_embedding(queries, items, correct, block=10) == whole).all()
    assert len(ranks_by_embedding(queries[:0], items, [])) == 0


def test_chance_equals_counting_every_draw() -> None:
    for num_items, right, k in [(6, 1, 2), (6, 2, 3), (7, 3, 1), (5, 4, 3)]:
        draws = list(combinations(range(num_items), k))
        counted = sum(any(item < right for item in draw) for draw in draws) / len(draws)
        assert chance([right], num_items, k) == pytest.approx(counted, abs=1e-12)


def test_chance_at_its_edges() -> None:
    assert chance([1], 100, 10) == pytest.approx(0.1)
    assert chance([1], 4, 10) == 1.0  # fewer items than K
    assert chance([0], 10, 5) == 0.0
    assert chance([1, 3], 10, 1) == pytest.approx(0.2)  # the mean of 0.1 and 0.3


def test_a_random_model_scores_chance() -> None:
    rng = np.random.default_rng(1)
    correct = [rng.choice(40, size=1 + index % 4, replace=False) for index in range(4000)]
    found = ranks(rng.normal(size=(4000, 40)), correct)
    direction = Direction(found, [len(items) for items in correct], 40, list(range(4000)))
    for k in CUTS:
        score = recall(direction, k, num_resamples=500, seed=0)
        assert score.low < score.chance < score.high


def test_recall_and_mean_recall_by_hand() -> None:
    direction = Direction(ranks(SIMILARITY, CORRECT), [1, 2, 2, 1], 4, ["a", "b", "c", "d"])
    assert recall(direction, 1, num_resamples=200, seed=0).value == 0.25
    assert recall(direction, 2, num_resamples=200, seed=0).value == 0.75
    other = Direction(np.array([1, 7]), [1, 1], 20, ["a", "b"])  # recall 0.5, 0.5, 1.0
    score = mean_recall([direction, other], num_resamples=200, seed=0)
    assert score.value == pytest.approx(((0.25 + 1 + 1) / 3 + (0.5 + 0.5 + 1) / 3) / 2)
    assert score.chance == pytest.approx(((0.375 + 1 + 1) / 3 + (0.05 + 0.25 + 0.5) / 3) / 2)


def test_gallery_pools_the_texts_of_a_concept() -> None:
    items = gallery([("heart", ["red heart", "love"]), ("heart", ["Red  Heart", "valentine"]), ("rose", ["love", ""])])
    assert items.texts == ["red heart", "love", "valentine"]
    assert [found.tolist() for found in items.texts_of_image] == [[0, 1, 2], [0, 1, 2], [1]]
    assert [found.tolist() for found in items.images_of_text] == [[0, 1], [0, 1, 2], [0, 1]]
    assert items.text_concepts == ["heart", "heart", "heart"]
    assert items.image_concepts == ["heart", "heart", "rose"]
