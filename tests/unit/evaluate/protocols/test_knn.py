import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.knn import nearest, nearest_neighbour
from align.evaluate.protocols.labelled import UNDECIDED, Labelled
from align.evaluate.protocols.recall import recall


def unit(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def accuracy(queries, labels, references, known):
    clusters = [str(index) for index in range(len(labels))]
    score = recall(nearest_neighbour(queries, labels, references, known, clusters), 1, num_resamples=200, seed=0)
    return score.value, score.chance


def test_the_nearest_reference_gives_the_label():
    references, known = unit(0, 40, 90), [0, 1, 1]
    # 10 deg -> 0; 30 deg -> 1; 30 deg is wrong for label 0; 80 deg -> 1
    value, chance = accuracy(unit(10, 30, 30, 80), [0, 1, 0, 1], references, known)
    assert value == 0.75
    assert chance == pytest.approx((1 / 3 + 2 / 3 + 1 / 3 + 2 / 3) / 4)


def test_equally_near_references_of_two_labels_count_as_wrong():
    same = unit(45, 45)
    assert accuracy(unit(45), [0], same, [0, 1])[0] == 0.0
    assert accuracy(unit(45), [0], same, [0, 0])[0] == 1.0


def test_a_label_that_no_reference_has_is_wrong():
    assert accuracy(unit(0), [7], unit(0, 90), [0, 1]) == (0.0, 0.0)


def drawn(number, seed, *, classes=5):
    """Whole numbers: many similarities are equal, and none is rounded, however the work is cut."""
    rng = np.random.default_rng(seed)
    return Labelled("drawn", rng.integers(-1, 2, (number, 6)).astype(np.float32), rng.integers(0, classes, number))


def by_hand(queries, references):
    answers = []
    for row in queries.features @ references.features.T:
        labels = set(references.labels[row == row.max()])
        answers.append(labels.pop() if len(labels) == 1 else UNDECIDED)
    return answers


@pytest.mark.usefixtures("any_blocks")
def test_blocks_change_nothing():
    queries, references = drawn(83, 0), drawn(97, 1, classes=2)
    expected = by_hand(queries, references)
    assert {UNDECIDED, 0, 1} == set(expected)
    assert nearest(queries, references).tolist() == expected


def test_references_may_be_a_mapped_file(tmp_path):
    queries, references = drawn(20, 0), drawn(50, 1)
    np.save(tmp_path / "references.npy", references.features.astype(np.float16))
    mapped = Labelled("references", np.load(tmp_path / "references.npy", mmap_mode="r"), references.labels)
    assert nearest(queries, mapped).tolist() == by_hand(queries, references)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_damaged_features_are_one_line(value):
    good, bad = drawn(20, 0), drawn(20, 1)
    bad.features[3, 2] = value
    for queries, references in ((good, bad), (bad, good)):
        with pytest.raises(DataError, match=r"^drawn: features that are NaN or infinite"):
            nearest(queries, references)


def test_another_width_is_one_line():
    good = drawn(20, 0)
    with pytest.raises(DataError, match="6 wide, those of narrow 2"):
        nearest(good, Labelled("narrow", unit(1, 2), np.array([0, 1])))
