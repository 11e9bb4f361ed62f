import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.classification import among, class_ranks, classification_scores, per_class
from tests.golden import clip_benchmark_figures

DRAWS = {"num_resamples": 300, "seed": 0}


@pytest.mark.parametrize("mask", ["all", "masked"])
def test_figures_equal_clip_benchmark(mask: str) -> None:
    golden = json.loads(clip_benchmark_figures.FILE.read_text())["classification"][mask]
    classes, images, labels = clip_benchmark_figures.class_inputs()
    kept = clip_benchmark_figures.MASKED if mask == "masked" else range(len(classes))
    shown = np.isin(labels, kept)
    rows, right = among(kept, len(classes), labels[shown].tolist())
    ranked = class_ranks(images[shown], classes[rows], right, range(len(right)))
    found = classification_scores(ranked, right, **DRAWS)
    assert {name: score.value for name, score in found.items()} == pytest.approx(golden, abs=1e-6)
    for score in found.values():
        assert score.low <= score.value <= score.high
        assert score.chance < score.low


def test_a_mask_may_make_a_wrong_answer_right() -> None:
    classes, image = np.eye(3, dtype=np.float32), np.array([[0.6, 0.7, 0.1]], dtype=np.float32)
    assert class_ranks(image, classes, [0], ["a"]).ranks.tolist() == [2]
    rows, right = among([2, 0], 3, [0])
    assert right == [1]
    assert class_ranks(image, classes[rows], right, ["a"]).ranks.tolist() == [1]


def test_the_mean_over_classes_weighs_classes_alike() -> None:
    classes = np.eye(2, dtype=np.float32)
    labels = [0] * 9 + [1]
    images = classes[[0] * 9 + [0]]  # always the first class
    ranked = class_ranks(images, classes, labels, range(10))
    found = classification_scores(ranked, labels, **DRAWS)
    assert "top5" not in found
    assert (found["top1"].value, found["mean_per_class"].value) == (0.9, 0.5)
    assert per_class(ranked, labels) == {0: 1.0, 1: 0.0}
    assert found["mean_per_class"].chance == 0.5


def test_a_class_without_an_image_has_no_accuracy() -> None:
    classes = np.eye(3, dtype=np.float32)
    ranked = class_ranks(classes[[0, 2]], classes, [0, 2], ["a", "b"])
    assert per_class(ranked, [0, 2]) == {0: 1.0, 2: 1.0}
    score = classification_scores(ranked, [0, 2], **DRAWS)["mean_per_class"]
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.025**0.5)


def test_a_collapsed_model_is_never_right() -> None:
    same = np.full((4, 2), 0.5, dtype=np.float32)
    assert class_ranks(same, same, [0, 1, 2, 3], range(4)).ranks.tolist() == [4] * 4


@pytest.mark.parametrize(
    ("classes", "labels", "message"),
    [
        ([], [0], "a mask of 0 classes"),
        ([0, 5], [0], "from 0 to 4"),
        ([-1, 2], [2], "from 0 to 4"),
        ([1, 1], [1], "distinct"),
        ([0, 2], [0, 1, 4, 1], r"2 class\(es\) of images are not in the mask, the first is 1"),
    ],
)
def test_masks_that_do_not_fit(classes: list[int], labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        among(classes, 5, labels)


def test_bad_input() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match="one width"):
        class_ranks(eye, np.eye(4, dtype=np.float32), [0, 1, 2], range(3))
    with pytest.raises(DataError, match="3 images, 2 labels, 3 clusters"):
        class_ranks(eye, eye, [0, 1], range(3))
    with pytest.raises(DataError, match="labels must be from 0 to 2"):
        class_ranks(eye, eye, [0, 1, 3], range(3))
    with pytest.raises(DataError, match="there must be one"):
        class_ranks(eye[:0], eye, [], [])
    with pytest.raises(DataError, match="not finite"):
        class_ranks(eye * np.nan, eye, [0, 1, 2], range(3))
    ranked = class_ranks(eye, eye, [0, 1, 2], range(3))
    with pytest.raises(DataError, match="2 labels for 3 images"):
        classification_scores(ranked, [0, 1], **DRAWS)
