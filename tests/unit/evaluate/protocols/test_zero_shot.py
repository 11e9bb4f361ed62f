import numpy as np
import pytest

from align.evaluate.protocols.recall import recall
from align.evaluate.protocols.zero_shot import (
    class_embeddings,
    confusion,
    majority_rate,
    predictions,
    prompts,
    zero_shot,
)


def test_prompts_go_class_by_class() -> None:
    assert prompts(["cat", "dog"], ["a {}", "{} art"]) == ["a cat", "cat art", "a dog", "dog art"]


def test_templates_are_averaged_then_normalised() -> None:
    texts = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    expected = [[2**-0.5, 2**-0.5], [0, 1]]
    assert class_embeddings(texts, 2) == pytest.approx(np.array(expected), abs=1e-7)


def test_prompts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="3 prompts"):
        class_embeddings(np.ones((3, 2), dtype=np.float32), 2)


def test_accuracy_predictions_and_confusion_by_hand() -> None:
    classes = np.eye(3, dtype=np.float32)
    images = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.2], [0.7, 0.0, 0.6], [0.1, 0.2, 0.9]], dtype=np.float32)
    labels = [0, 1, 2, 2]
    score = recall(zero_shot(images, classes, labels, ["a", "b", "c", "d"]), 1, num_resamples=200, seed=0)
    assert (score.value, score.chance) == (0.75, pytest.approx(1 / 3))
    assert predictions(images, classes).tolist() == [0, 1, 0, 2]
    assert confusion(labels, predictions(images, classes), 3).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_a_constant_model_is_not_accurate() -> None:
    """argmax would answer class 0 and be right about every image of it."""
    constant = np.full((5, 4), 0.5, dtype=np.float32)
    direction = zero_shot(constant, np.full((3, 4), 0.5, dtype=np.float32), [0, 0, 0, 1, 2], list("abcde"))
    assert recall(direction, 1, num_resamples=200, seed=0).value == 0.0


def test_majority_rate() -> None:
    assert majority_rate([2, 2, 1, 0]) == 0.5
    with pytest.raises(ValueError, match="undefined"):
        majority_rate([])
