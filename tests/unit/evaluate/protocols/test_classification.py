import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.zero_shot import classification_scores, per_class, zero_shot
from tests.golden import clip_benchmark_figures

DRAWS = {"num_resamples": 300, "seed": 0}


@pytest.mark.parametrize("mask", ["all", "masked"])
def test_figures_equal_clip_benchmark(mask: str) -> None:
    golden = json.loads(clip_benchmark_figures.FILE.read_text())["classification"][mask]
    classes, images, labels = clip_benchmark_figures.class_inputs()
    kept = list(clip_benchmark_figures.MASKED) if mask == "masked" else list(range(len(classes)))
    shown = np.isin(labels, kept)
    right = [kept.index(label) for label in labels[shown].tolist()]
    ranked = zero_shot(images[shown], classes[kept], right, [str(image) for image in range(len(right))])
    found = classification_scores(ranked, right, **DRAWS)
    assert {name: score.value for name, score in found.items()} == pytest.approx(golden, abs=1e-6)
    for score in found.values():
        assert score.low <= score.value <= score.high
        assert score.chance < score.low


def test_the_mean_over_classes_weighs_classes_alike() -> None:
    classes = np.eye(2, dtype=np.float32)
    labels = [0] * 9 + [1]
    images = classes[[0] * 9 + [0]]  # always the first class
    ranked = zero_shot(images, classes, labels, list("abcdefghij"))
    found = classification_scores(ranked, labels, **DRAWS)
    assert "top5" not in found
    assert (found["top1"].value, found["mean_per_class"].value) == (0.9, 0.5)
    assert per_class(ranked, labels) == {0: 1.0, 1: 0.0}
    assert found["mean_per_class"].chance == 0.5


def test_a_class_without_an_image_has_no_accuracy() -> None:
    classes = np.eye(3, dtype=np.float32)
    ranked = zero_shot(classes[[0, 2]], classes, [0, 2], ["a", "b"])
    assert per_class(ranked, [0, 2]) == {0: 1.0, 2: 1.0}
    score = classification_scores(ranked, [0, 2], **DRAWS)["mean_per_class"]
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.025**0.5)


def test_labels_and_ranks_differ_in_number() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match="2 labels for 3 images"):
        classification_scores(zero_shot(eye, eye, [0, 1, 2], ["a", "b", "c"]), [0, 1], **DRAWS)
