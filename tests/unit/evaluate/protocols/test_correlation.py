"""Spearman's correlation against scipy's, and the draws of Crisscrossed Captions against a loop."""

import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.correlation import sampled_spearman, spearman
from tests.golden import scipy_spearman


@pytest.mark.parametrize("name", ["real", "rated", "coarse"])
def test_correlations_equal_scipys(name):
    golden = json.loads(scipy_spearman.FILE.read_text())[name]
    one, other = scipy_spearman.inputs()[name]
    assert spearman(one, other) == pytest.approx(golden["spearman"], abs=1e-12)


def test_a_constant_side_has_no_correlation():
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(spearman(np.arange(5.0), np.ones(5)))


def rated(num_queries, seed, noise=1.0):
    """Queries of one to three pairs, ratings in steps of a fifth, similarities that follow them."""
    rng = np.random.default_rng(seed)
    queries = np.repeat(np.arange(num_queries), rng.integers(1, 4, num_queries))
    truth = rng.standard_normal(len(queries)) + 0.7 * rng.standard_normal(num_queries)[queries]
    return queries, np.round(truth * 5) / 5, truth + noise * rng.standard_normal(len(queries))


def test_a_replicate_has_half_of_the_queries_and_one_pair_of_each():
    """With pairs that agree within a query, the draw of the pair changes nothing: a loop gives mean and deviation."""
    rng = np.random.default_rng(1)
    ratings, similarity = rng.random((2, 30))
    similarity += ratings
    queries = np.repeat(np.arange(30), 3)
    found = sampled_spearman(queries, ratings[queries], similarity[queries], seed=0, num_replicates=4000)
    half = [rng.permutation(30)[:15] for _ in range(4000)]
    looped = [float(spearman(ratings[some], similarity[some])) for some in half]
    assert found.mean == pytest.approx(np.mean(looped), abs=0.01)
    assert found.deviation == pytest.approx(np.std(looped), rel=0.05)


def test_every_pair_of_a_query_is_as_likely():
    """One of a query's three pairs is opposed to its rating. Drawn as often as the others, it pulls the mean down."""
    queries = np.repeat(np.arange(300), 3)
    ratings = np.tile([0.0, 1.0, 2.0], 300) + 0.001 * queries
    similarity = ratings.copy()
    similarity[2::3] = -1 - similarity[2::3]
    found = sampled_spearman(queries, ratings, similarity, seed=0, num_replicates=500)
    alike = float(spearman(ratings, similarity))  # all pairs of equal weight: what the draw has on average
    assert found.mean == pytest.approx(alike, abs=0.02)


def test_equal_seeds_give_equal_results():
    queries, ratings, similarity = rated(60, seed=0)
    first = sampled_spearman(queries, ratings, similarity, seed=3, num_replicates=100)
    assert first == sampled_spearman(queries, ratings, similarity, seed=3, num_replicates=100)
    assert first != sampled_spearman(queries, ratings, similarity, seed=4, num_replicates=100)


def test_the_deviation_is_that_of_other_samples_of_queries():
    """As the module says: half of a sample, drawn without replacement, spreads as whole samples do, or more."""
    means = [sampled_spearman(*rated(100, seed=seed), seed=0, num_replicates=100).mean for seed in range(60)]
    said = np.mean(
        [sampled_spearman(*rated(100, seed=seed), seed=0, num_replicates=200).deviation for seed in range(9)]
    )
    assert 0.8 * np.std(means) < said < 1.7 * np.std(means)


def test_bad_input():
    queries, ratings, similarity = rated(20, seed=0)
    with pytest.raises(DataError, match="all similarities of a draw are equal"):
        sampled_spearman(queries, ratings, np.ones(len(queries)), seed=0)
    similarity[3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        sampled_spearman(queries, ratings, similarity, seed=0)
    with pytest.raises(DataError, match="queries, "):
        sampled_spearman(queries[1:], ratings, ratings, seed=0)
    with pytest.raises(DataError, match="3 rated queries"):
        sampled_spearman([0, 1, 2], [1.0, 2.0, 3.0], np.arange(3.0), seed=0)
