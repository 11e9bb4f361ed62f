import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.average_precision import average_precisions, chance, mean_average_precision
from tests.golden import clip_benchmark_figures


def test_a_tie_counts_against_and_a_class_of_no_picture_is_zero() -> None:
    has = np.array([[1, 0], [0, 0]], dtype=bool)
    assert average_precisions(np.ones((2, 2)), has).tolist() == [0.5, 0.0]


def test_equals_clip_benchmark() -> None:
    golden = json.loads(clip_benchmark_figures.FILE.read_text())["many_labels"]
    classes, images, has = clip_benchmark_figures.many_label_inputs()
    found = average_precisions(images @ classes.T, has)
    assert found == pytest.approx(golden["average_precision"], abs=1e-5)
    score = mean_average_precision(images @ classes.T, has, range(len(images)), num_resamples=50, seed=0)
    assert score.value == pytest.approx(golden["mean_average_precision"], abs=1e-5)
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_chance_is_that_of_random_orders() -> None:
    rng = np.random.default_rng(0)
    for num_right, num_items in ((1, 7), (3, 10), (10, 10), (0, 4)):
        has = (np.arange(num_items) < num_right)[:, np.newaxis].repeat(4000, axis=1)
        measured = average_precisions(rng.random(has.shape), has).mean()
        assert measured == pytest.approx(chance(num_right, num_items), abs=0.01)


def test_a_replicate_that_draws_each_picture_once_is_the_figure() -> None:
    """Two independent ways: weights of two are the pictures twice, at one rank."""
    rng = np.random.default_rng(1)
    similarity, has = rng.random((30, 3)), rng.random((30, 3)) < 0.4
    wide = mean_average_precision(similarity, has, range(30), num_resamples=400, seed=0)
    # All pictures of one cluster: every replicate is the set itself, so the interval has no width.
    same = mean_average_precision(similarity, has, [0] * 30, num_resamples=5, seed=0)
    assert same.low == pytest.approx(same.value) and same.high == pytest.approx(same.value)
    assert wide.value == same.value and wide.high - wide.low > 0.1


def test_bad_input() -> None:
    for similarity, has, message in (
        (np.ones((2, 2)), np.ones((2, 3), dtype=bool), "expected"),
        (np.ones((0, 2)), np.ones((0, 2), dtype=bool), "expected"),
        (np.full((2, 2), np.nan), np.ones((2, 2), dtype=bool), "finite"),
    ):
        with pytest.raises(DataError, match=message):
            average_precisions(similarity, has)
