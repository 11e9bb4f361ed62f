import numpy as np
import pytest

from align.evaluate.protocols.knn import nearest_neighbour
from align.evaluate.protocols.recall import recall


def unit(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def accuracy(queries: np.ndarray, labels: list[int], references: np.ndarray, known: list[int]) -> tuple[float, float]:
    clusters = [str(index) for index in range(len(labels))]
    score = recall(nearest_neighbour(queries, labels, references, known, clusters), 1, num_resamples=200, seed=0)
    return score.value, score.chance


def test_the_nearest_reference_gives_the_label() -> None:
    references, known = unit(0, 40, 90), [0, 1, 1]
    # 10 deg -> 0; 30 deg -> 1; 30 deg is wrong for label 0; 80 deg -> 1
    value, chance = accuracy(unit(10, 30, 30, 80), [0, 1, 0, 1], references, known)
    assert value == 0.75
    assert chance == pytest.approx((1 / 3 + 2 / 3 + 1 / 3 + 2 / 3) / 4)


def test_equally_near_references_of_two_labels_count_as_wrong() -> None:
    same = unit(45, 45)
    assert accuracy(unit(45), [0], same, [0, 1])[0] == 0.0
    assert accuracy(unit(45), [0], same, [0, 0])[0] == 1.0


def test_a_label_that_no_reference_has_is_wrong() -> None:
    assert accuracy(unit(0), [7], unit(0, 90), [0, 1]) == (0.0, 0.0)
