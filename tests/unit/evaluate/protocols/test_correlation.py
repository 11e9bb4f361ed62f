"""Spearman's correlation against scipy's, and the draws of Crisscrossed Captions against a loop."""

import json

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols import composed_queries
from align.evaluate.protocols.average_precision import average_precisions, chance, mean_average_precision
from align.evaluate.protocols.composed_queries import precision_scores
from align.evaluate.protocols.correlation import average_ranks, sampled_spearman, spearman
from align.search import queries
from tests.golden import clip_benchmark_figures, scipy_spearman


@pytest.mark.parametrize("name", ["real", "rated", "coarse"])
def test_correlations_and_average_ranks_equal_scipys(name: str) -> None:
    golden = json.loads(scipy_spearman.FILE.read_text())[name]
    one, other = scipy_spearman.inputs()[name]
    assert spearman(one, other) == pytest.approx(golden["spearman"], abs=1e-12)
    assert average_ranks(one)[0].tolist() == golden["ranks_of_first"]


def test_a_constant_side_has_no_correlation() -> None:
    assert np.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert np.isnan(spearman(np.arange(5.0), np.ones(5)))


def rated(num_queries: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries of one to three pairs, ratings in steps of a fifth, similarities that follow them."""
    rng = np.random.default_rng(seed)
    queries = np.repeat(np.arange(num_queries), rng.integers(1, 4, num_queries))
    truth = rng.standard_normal(len(queries)) + 0.7 * rng.standard_normal(num_queries)[queries]
    return queries, np.round(truth * 5) / 5, truth + noise * rng.standard_normal(len(queries))


def test_a_replicate_has_half_of_the_queries_and_one_pair_of_each() -> None:
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


def test_every_pair_of_a_query_is_as_likely() -> None:
    """One of a query's three pairs is opposed to its rating. Drawn as often as the others, it pulls the mean down."""
    queries = np.repeat(np.arange(300), 3)
    ratings = np.tile([0.0, 1.0, 2.0], 300) + 0.001 * queries
    similarity = ratings.copy()
    similarity[2::3] = -1 - similarity[2::3]
    found = sampled_spearman(queries, ratings, similarity, seed=0, num_replicates=500)
    alike = float(spearman(ratings, similarity))  # all pairs of equal weight: what the draw has on average
    assert found.mean == pytest.approx(alike, abs=0.02)
    assert found.low < alike < found.high


def test_the_order_of_pairs_and_the_names_of_queries_do_not_matter_to_the_interval() -> None:
    queries, ratings, similarity = rated(60, seed=0)
    first = sampled_spearman(queries, ratings, similarity, seed=3, num_replicates=100)
    shuffled = np.random.default_rng(0).permutation(len(queries))
    other = sampled_spearman(
        queries[shuffled] * 1000 + 7, ratings[shuffled], similarity[shuffled], seed=3, num_replicates=100
    )
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=1e-12)
    assert first == sampled_spearman(queries, ratings, similarity, seed=3, num_replicates=100)
    assert first.low < first.mean < first.high


def test_bad_input() -> None:
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


def test_bad_input_average_precision() -> None:
    for similarity, has, message in (
        (np.ones((2, 2)), np.ones((2, 3), dtype=bool), "expected"),
        (np.ones((0, 2)), np.ones((0, 2), dtype=bool), "expected"),
        (np.full((2, 2), np.nan), np.ones((2, 2), dtype=bool), "finite"),
    ):
        with pytest.raises(DataError, match=message):
            average_precisions(similarity, has)


DRAWS = {"num_resamples": 200, "seed": 0}


def unit(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def test_composed_as_search_composes() -> None:
    images, texts = unit(10, 50), unit(80, 20)
    found = composed_queries.compose(images, texts, np.array([2.0, -2.0]))
    assert found[0] == pytest.approx(queries.compose(images[0], plus=texts[0], text_weight=2))
    assert found[1] == pytest.approx(queries.compose(images[1], minus=texts[1], text_weight=2))


def test_precision_by_hand() -> None:
    items = unit(0, 10, 20, 30, 80)
    labels = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=bool)
    found = precision_scores(unit(1, 79), items, {"heart": labels}, k=3, **DRAWS)["heart/precision@3"]
    assert found.value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert found.chance == pytest.approx((2 / 5 + 1 / 5) / 2)
    own = precision_scores(unit(1, 79), items, {"heart": labels}, np.array([0, -1]), k=3, **DRAWS)["heart/precision@3"]
    assert own.value == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert own.chance == pytest.approx((1 / 4 + 1 / 5) / 2)


def test_items_that_tie_count_by_their_share() -> None:
    """One item is nearest and has no label; of the three that tie for the other places one has it."""
    items = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=np.float32)
    labels = np.array([[False, False, False, True]])
    for k in (2, 3):
        expected = (k - 1) / 3 / k
        found = precision_scores(items[:1], items, {"a": labels}, k=k, **DRAWS)[f"a/precision@{k}"].value
        assert found == pytest.approx(expected)
    items = np.ones((4, 2), dtype=np.float32)
    labels = np.array([[True, False, False, True]])
    assert precision_scores(items[:1], items, {"a": labels}, k=9, **DRAWS)["a/precision@9"].value == 0.5


def test_bad_input_composed_queries() -> None:
    items, labels = unit(0, 10, 20), np.zeros((1, 3), dtype=bool)
    with pytest.raises(DataError, match="one width"):
        precision_scores(np.eye(3), items, {"a": labels}, **DRAWS)
    with pytest.raises(DataError, match=r"labels a: \(1, 3\), but there are \(2, 3\)"):
        precision_scores(unit(0, 1), items, {"a": labels}, **DRAWS)
    with pytest.raises(DataError, match="own images"):
        precision_scores(unit(0), items, {"a": labels}, np.array([3]), **DRAWS)
    with pytest.raises(DataError, match="not finite"):
        precision_scores(unit(0) * np.nan, items, {"a": labels}, **DRAWS)
    with pytest.raises(DataError, match="nothing was asked"):
        precision_scores(items[:0], items, {"a": labels[:0]}, **DRAWS)
    for image, text, weight in ((unit(0), unit(180), 1.0), (unit(0) * np.nan, unit(0), 1.0)):
        with pytest.raises(DataError, match="query 0: image and text cancel"):
            composed_queries.compose(image, text, np.array([weight]))
    with pytest.raises(DataError, match=r"\(2,\) weights"):
        composed_queries.compose(unit(0), unit(0), np.ones(2))
