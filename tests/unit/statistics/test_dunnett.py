"""Arm + seed by least squares against a table written out by hand; Dunnett's critical values against published ones."""

import numpy as np
import pytest

from align.statistics.dunnett import against_base, critical_value

#: Dunnett 1964, two-sided, 5 %: (arms besides the base, degrees of freedom) -> t.
PUBLISHED = {(1, 10): 2.23, (2, 10): 2.57, (3, 10): 2.76, (5, 20): 2.73, (9, 20): 2.95, (3, 60): 2.41}
#: Of the same integral by quadrature over the base's error and the deviation (scipy 1.17), to four digits.
EXACT = {(9, 18): 2.9774, (3, 5): 3.2932, (2, 10): 2.5683}


def test_critical_values_are_those_that_are_published():
    for (count, freedom), value in (PUBLISHED | EXACT).items():
        halves = np.full((count, count), 0.5) + np.eye(count) / 2
        assert critical_value(halves, freedom) == pytest.approx(value, abs=0.0065)
    assert critical_value(np.eye(3), 1000) == pytest.approx(
        2.39, abs=0.01
    )  # Sidak: 1 - 0.95^(1/3), as they do not meet


def test_a_whole_table():
    """Three arms, three seeds: effects of arms 0, 3, -1, of seeds 0, 10, 20, and errors that add up to 0 both ways."""
    errors = {("a", 0): 0.5, ("a", 1): -0.5, ("b", 0): -0.5, ("b", 2): 0.5, ("c", 1): 0.5, ("c", 2): -0.5}
    effects = {"a": 0.0, "b": 3.0, "c": -1.0}
    figures = {(arm, s): mean + 10 * s + errors.get((arm, s), 0.0) for arm, mean in effects.items() for s in (0, 1, 2)}
    found = against_base(figures, "a")
    assert found.freedom == 4 and found.deviation == pytest.approx(np.sqrt(6 * 0.25 / 4))
    assert found.means == pytest.approx({"a": 10.0, "b": 13.0, "c": 9.0})
    assert found.critical == pytest.approx(3.3104, abs=0.0065)
    half = found.critical * found.deviation * np.sqrt(2 / 3)
    better, worse = found.differences["b"], found.differences["c"]
    assert (better.value, better.low, better.high) == pytest.approx((3.0, 3 - half, 3 + half))
    assert worse.value == pytest.approx(-1.0)
    assert (better.verdict, worse.verdict) == ("better", "not told apart")


def test_a_missing_run_is_left_to_least_squares():
    """The mean of b's own seeds would be 5 too low: its best seed is missing."""
    figures = {(arm, s): {"a": 0.0, "b": 1.0, "c": 2.0}[arm] + 10 * s for arm in "abc" for s in (0, 1)}
    del figures["b", 1]
    found = against_base(figures, "a")
    assert found.means["b"] == pytest.approx(6.0) and found.differences["b"].value == pytest.approx(1.0)
    assert found.freedom == 1


def test_an_arm_that_shares_no_seed_with_the_base_is_not_compared():
    found = against_base({("a", 0): 1.0, ("b", 1): 2.0, ("c", 0): 3.0, ("c", 2): 5.0}, "a")
    assert set(found.differences) == {"c"} and found.freedom == 0 and found.differences["c"].verdict == ""
    assert against_base({("b", 0): 1.0, ("c", 0): 2.0}, "a").differences == {}
    assert against_base({}, "a").means == {}


def test_one_seed_has_figures_and_no_verdict():
    found = against_base({("a", 0): 0.5, ("b", 0): 0.75}, "a")
    assert found.differences["b"].value == pytest.approx(0.25) and found.differences["b"].verdict == ""
    assert found.freedom == 0


@pytest.mark.numerics
def test_all_intervals_together_hold_the_truth_as_often_as_they_say():
    generator, inside = np.random.default_rng(1), 0
    critical = critical_value(np.full((4, 4), 0.5) + np.eye(4) / 2, 8)
    tables = generator.standard_normal((100_000, 5, 3))
    arms, seeds = tables.mean(2, keepdims=True), tables.mean(1, keepdims=True)
    left = tables - arms - seeds + tables.mean((1, 2), keepdims=True)
    deviation = np.sqrt((left**2).sum((1, 2)) / 8)
    largest = np.abs(arms[:, 1:, 0] - arms[:, :1, 0]).max(1)
    inside = np.mean(largest < critical * deviation * np.sqrt(2 / 3))
    assert inside == pytest.approx(0.95, abs=0.003)
