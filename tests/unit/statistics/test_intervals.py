import numpy as np
import pytest

from align.statistics.intervals import Scored, interval, intervals


def scored(values: list[float], clusters: list[str] | None = None) -> Scored:
    return Scored(np.array(values, dtype=np.float64), clusters or [str(index) for index in range(len(values))])


def test_the_interval_of_independent_queries_is_the_binomial_one() -> None:
    values = [1.0] * 300 + [0.0] * 700
    low, high = interval([scored(values)], num_resamples=4000, seed=0)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)


def test_queries_of_one_concept_are_resampled_together() -> None:
    """Four copies of each query carry no more information than one: the interval must not shrink."""
    values = [1.0] * 30 + [0.0] * 70
    once = interval([scored(values)], num_resamples=4000, seed=0)
    copies = interval([scored(values * 4, [str(index) for index in range(100)] * 4)], num_resamples=4000, seed=0)
    assert copies == pytest.approx(once, abs=0.01)
    alone = interval([scored(values * 4)], num_resamples=4000, seed=0)
    assert alone[1] - alone[0] < 0.6 * (copies[1] - copies[0])


def test_the_lower_bound_covers() -> None:
    """Over 300 experiments with a true rate of 0.2 the interval holds it in about 95 % of them."""
    rng = np.random.default_rng(0)
    inside = 0
    for experiment in range(300):
        low, high = interval(
            [scored(list(rng.binomial(1, 0.2, 100).astype(float)))], num_resamples=300, seed=experiment
        )
        inside += low <= 0.2 <= high
    assert 0.91 <= inside / 300 <= 0.99


def test_all_right_and_all_wrong_are_no_certainty() -> None:
    assert interval([scored([0.0] * 20)], num_resamples=200, seed=0) == (0.0, pytest.approx(0.1684, abs=1e-4))
    assert interval([scored([1.0] * 20)], num_resamples=200, seed=0) == (pytest.approx(0.8316, abs=1e-4), 1.0)
    # Twenty queries about two concepts know as little as two queries.
    low, _ = interval([scored([1.0] * 20, ["a", "b"] * 10)], num_resamples=200, seed=0)
    assert low == pytest.approx(0.025**0.5)


def test_the_seed_decides_and_the_mean_is_within() -> None:
    group = scored(list(np.random.default_rng(3).random(40)))
    first = interval([group], num_resamples=300, seed=1)
    assert first == interval([group], num_resamples=300, seed=1)
    assert first != interval([group], num_resamples=300, seed=2)
    assert first[0] < group.values.mean() < first[1]


def test_two_directions_share_their_draws() -> None:
    """Where both directions succeed on the same concepts, their mean varies as one of them does."""
    values = [1.0] * 30 + [0.0] * 70
    group = scored(values)
    assert interval([group, group], num_resamples=500, seed=0) == pytest.approx(
        interval([group], num_resamples=500, seed=0)
    )


def test_no_query_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval([scored([])], num_resamples=200, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        interval([], num_resamples=200, seed=0)


def test_figures_of_one_set_share_their_draws() -> None:
    rng = np.random.default_rng(0)
    one, other = (scored(list(rng.random(40))) for _ in range(2))
    together = intervals([[one], [one, other], [scored([1.0] * 40)]], num_resamples=300, seed=1)
    alone = [interval(groups, num_resamples=300, seed=1) for groups in ([one], [one, other], [scored([1.0] * 40)])]
    assert np.array(together) == pytest.approx(np.array(alone))
    assert intervals([], num_resamples=300, seed=1) == []
    with pytest.raises(ValueError, match="at least one query"):
        intervals([[one], []], num_resamples=300, seed=1)
