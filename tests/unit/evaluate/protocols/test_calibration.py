"""Calibration against values worked out by hand."""

import numpy as np
import pytest

from align.evaluate.protocols.calibration import calibration, confidences


def test_the_error_is_the_mean_distance_weighted_by_answers() -> None:
    # 2 answers at 0.95, one of them right; 2 at 0.5, both right: 2/4 * |0.5 - 0.95| + 2/4 * |1 - 0.5|
    one = calibration(np.array([0.95, 0.95, 0.5, 0.5]), [True, False, True, True])
    assert one.error == pytest.approx(0.475)
    assert (one.confidence, one.accuracy) == (pytest.approx(0.725), 0.75)
    assert one.bins == {7 / 15: (2, 0.5, 1.0), 14 / 15: (2, pytest.approx(0.95), 0.5)}


def test_a_model_that_knows_what_it_knows_has_no_error() -> None:
    rng = np.random.default_rng(0)
    said = rng.uniform(0.1, 1.0, 200_000)
    assert calibration(said, rng.uniform(size=len(said)) < said).error < 0.01
    assert calibration(said, rng.uniform(size=len(said)) < said**2).error > 0.1


def test_certainty_is_in_the_last_bin() -> None:
    assert calibration(np.array([1.0]), [True]).bins == {14 / 15: (1, 1.0, 1.0)}
    with pytest.raises(ValueError, match="0 probabilities"):
        calibration(np.zeros(0), [])


def test_the_probability_is_that_of_a_softmax_by_the_temperature() -> None:
    classes = np.eye(3, dtype=np.float32)
    images = np.array([[1, 0, 0], [0.6, 0.8, 0]] * 1000, dtype=np.float32)  # more than one block
    said = confidences(images, classes, 0.5)
    assert said[:2] == pytest.approx(
        [np.exp(2) / (np.exp(2) + 2), np.exp(1.6) / (np.exp(1.6) + np.exp(1.2) + 1)], rel=1e-6
    )
    assert np.array_equal(said, np.tile(said[:2], 1000))
    assert confidences(images, classes, 1e-3) == pytest.approx(1.0)  # no overflow
