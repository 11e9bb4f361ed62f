from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.fine_tuning.pictures import Pictures, TrainingBatches
from align.evaluate.fine_tuning.recipe import View
from tests.support.colours import square
from tests.support.tuning import pictures

VIEW = View(32, 36)


def test_every_picture_comes_once_an_epoch_and_batches_are_functions_of_the_step() -> None:
    split = replace(pictures(number=20), labels=np.arange(20))
    with ThreadPoolExecutor(2) as pool:
        batches = TrainingBatches(split, 8, 0, pool)
        assert batches.per_epoch == 2.5
        found = list(batches.steps(0, 5, VIEW))
        seen = np.concatenate([labels for _, labels in found])
        assert sorted(seen[:20]) == sorted(seen[20:]) == list(range(20))
        assert list(seen[:20]) != list(seen[20:])
        for (crops, labels), (again, same) in zip(
            found[3:], TrainingBatches(split, 8, 0, pool).steps(3, 5, VIEW), strict=True
        ):
            assert crops.tobytes() == again.tobytes() and (labels == same).all()
        other = [labels for _, labels in TrainingBatches(split, 8, 1, pool).steps(0, 5, VIEW)]
        assert not np.array_equal(seen, np.concatenate(other))
        assert list(batches.steps(5, 5, VIEW)) == []


def test_a_picture_that_does_not_decode_is_one_line() -> None:
    split = Pictures("train", [square("red"), b"not a picture"], np.array([0, 1]))
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(DataError, match=r"^train: picture 1: not an image that can be decoded"):
            list(TrainingBatches(split, 2, 0, pool).steps(0, 1, VIEW))
        with pytest.raises(DataError, match=r"^train: picture 1: "):
            split.centre(np.array([0, 1]), VIEW, pool)


@pytest.mark.parametrize("labels", [[0], [0, -1], [0.0, 1.0], [[0, 1]]])
def test_labels_that_do_not_fit_are_one_line(labels: list[object]) -> None:
    with pytest.raises(DataError, match=r"^train: 2 images, labels of shape .*; want one from 0 up for each$"):
        Pictures("train", [b"", b""], np.array(labels))
    with pytest.raises(DataError, match="2 images, but 1 clusters"):
        Pictures("train", [b"", b""], np.array([0, 1]), ["a"])
