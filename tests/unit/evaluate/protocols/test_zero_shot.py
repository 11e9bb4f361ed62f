import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.recall import recall
from align.evaluate.protocols.zero_shot import (
    class_embeddings,
    classification_scores,
    confusion,
    majority_rate,
    per_class,
    predictions,
    prompts,
    zero_shot,
)
from tests.golden import clip_benchmark_figures

DRAWS = {"num_resamples": 300, "seed": 0}


@pytest.mark.parametrize("mask", ["all", "masked"])
def test_figures_equal_clip_benchmark(mask):
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


def test_the_mean_over_classes_weighs_classes_alike():
    classes = np.eye(2, dtype=np.float32)
    labels = [0] * 9 + [1]
    images = classes[[0] * 9 + [0]]  # always the first class
    ranked = zero_shot(images, classes, labels, list("abcdefghij"))
    found = classification_scores(ranked, labels, **DRAWS)
    assert "top5" not in found
    assert (found["top1"].value, found["mean_per_class"].value) == (0.9, 0.5)
    assert per_class(ranked, labels) == {0: 1.0, 1: 0.0}
    assert found["mean_per_class"].chance == 0.5


def test_a_class_without_an_image_has_no_accuracy():
    classes = np.eye(3, dtype=np.float32)
    ranked = zero_shot(classes[[0, 2]], classes, [0, 2], ["a", "b"])
    assert per_class(ranked, [0, 2]) == {0: 1.0, 2: 1.0}
    score = classification_scores(ranked, [0, 2], **DRAWS)["mean_per_class"]
    assert (score.value, score.high) == (1.0, 1.0)
    assert score.low == pytest.approx(0.025**0.5)


def test_labels_and_ranks_differ_in_number():
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(DataError, match="2 labels for 3 images"):
        classification_scores(zero_shot(eye, eye, [0, 1, 2], ["a", "b", "c"]), [0, 1], **DRAWS)


def test_prompts_go_class_by_class():
    assert prompts(["cat", "dog"], ["a {}", "{} art"]) == ["a cat", "cat art", "a dog", "dog art"]


def test_templates_are_averaged_then_normalised():
    texts = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    expected = [[2**-0.5, 2**-0.5], [0, 1]]
    assert class_embeddings(texts, 2) == pytest.approx(np.array(expected), abs=1e-7)


def test_prompts_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 prompts"):
        class_embeddings(np.ones((3, 2), dtype=np.float32), 2)


def test_accuracy_predictions_and_confusion_by_hand():
    classes = np.eye(3, dtype=np.float32)
    images = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.2], [0.7, 0.0, 0.6], [0.1, 0.2, 0.9]], dtype=np.float32)
    labels = [0, 1, 2, 2]
    score = recall(zero_shot(images, classes, labels, ["a", "b", "c", "d"]), 1, num_resamples=200, seed=0)
    assert (score.value, score.chance) == (0.75, pytest.approx(1 / 3))
    assert predictions(images, classes).tolist() == [0, 1, 0, 2]
    assert confusion(labels, predictions(images, classes), 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_a_constant_model_is_as_good_as_chance():
    """argmax would answer class 0 and be right about every image of it."""
    constant = np.full((5, 4), 0.5, dtype=np.float32)
    direction = zero_shot(constant, np.full((3, 4), 0.5, dtype=np.float32), [0, 0, 0, 1, 2], list("abcde"))
    score = recall(direction, 1, num_resamples=200, seed=0)
    assert score.value == pytest.approx(score.chance)
    assert score.chance == pytest.approx(1 / 3)


def test_majority_rate():
    assert majority_rate([2, 2, 1, 0]) == 0.5
    with pytest.raises(ValueError, match="undefined"):
        majority_rate([])
