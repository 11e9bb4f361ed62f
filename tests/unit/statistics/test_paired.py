"""Promotion by simulation: equal models are seldom promoted, better ones as often as the page states."""

from functools import lru_cache

import numpy as np
import pytest

from align.config.release import PromoteConfig
from align.release.promotion.slices import compared_slices
from align.statistics import intervals
from align.statistics.paired import POWER, difference, of_metrics
from tests.support.params import load_params
from tests.support.rank_pairs import FEW, SETS, pair

METRICS = ["concepts/mean_recall", "vendor/mean_recall", "classes/zero_shot/accuracy"]
#: That of params.yaml.
MARGIN = 0.005
NUM_PAIRS = 200


def differences(seed, better=0.0, number=NUM_PAIRS, sets=SETS, metrics=METRICS):
    """Candidate minus champion for pairs of models."""
    rng = np.random.default_rng(seed)
    return [
        difference(of_metrics(metrics, *pair(rng, sets, better)), confidence=0.95, num_resamples=500)
        for _ in range(number)
    ]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.numerics) for seed in (1, 2))])
def test_of_200_pairs_of_equal_models_at_most_5_percent_are_promoted(seed):
    found = differences(seed)
    assert sum(one.low > MARGIN for one in found) <= 0.05 * NUM_PAIRS
    assert 0.35 * NUM_PAIRS < sum(one.value > 0 for one in found) < 0.65 * NUM_PAIRS  # as often better as worse


def test_a_better_model_is_found_with_the_power_that_the_page_states():
    stated = float(np.mean([one.detectable(MARGIN) for one in differences(3, number=30)]))
    tried = (0.1, 0.3)  # how much better; the difference grows nearly in proportion
    near = [mean_difference(better) for better in tried]
    better = float(np.interp(stated, near, tried))
    assert near[0] < stated < near[1]
    found = differences(5, better)
    assert np.mean([one.value for one in found]) == pytest.approx(stated, abs=0.003)
    assert np.mean([one.low > MARGIN for one in found]) == pytest.approx(POWER, abs=0.085)  # three standard errors


def mean_difference(better):
    """Of as many pairs as are judged, by the seed that they have."""
    rng = np.random.default_rng(5)
    all_parts = [of_metrics(METRICS, *pair(rng, SETS, better)) for _ in range(NUM_PAIRS)]
    return float(np.mean([sum(part.weight * part.differences.values.mean() for part in parts) for parts in all_parts]))


def test_of_few_concepts_the_bound_keeps_its_promise():
    """Twelve concepts: without a margin, and over a thousand pairs, so that 5 % are told from 7 %."""
    found = differences(6, number=1000, sets=FEW, metrics=["few/mean_recall"])
    assert np.mean([one.low > 0 for one in found]) <= 0.06


def test_slices_refuse_few_equal_models(monkeypatch):
    """Of 23 slices, of which each has a bound of its own, none is worse in 95 of 100 pairs; margin 0."""
    monkeypatch.setattr(intervals, "_all_draws", lru_cache(intervals._all_draws.__wrapped__))  # all pairs have the same
    values = load_params().section(PromoteConfig).model_dump() | {"slice_margin": 0.0}
    config = PromoteConfig.model_validate(values)
    rng = np.random.default_rng(7)
    worse = []
    for _ in range(40):
        slices = compared_slices(config, *pair(rng))
        assert len(slices) == 23 and all(one.difference is not None for one in slices)
        worse.append(any(one.worse for one in slices))
    assert np.mean(worse) <= 0.1
    found = compared_slices(config, *pair(rng, better=-1.5))
    assert [one.name for one in found if one.worse][:3] == ["concepts", "vendor", "classes"]
