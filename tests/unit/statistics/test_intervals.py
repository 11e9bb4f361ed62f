import numpy as np
import pytest

from align.errors import DataError
from align.formats.query_ranks import QueryRanks, Ranked
from align.statistics.intervals import Scored, draws, interval, intervals
from align.statistics.paired import Part, difference, of_metrics, set_of
from align.statistics.randomness import Purpose, permutation, uniforms


def scored(values, clusters=None):
    return Scored(np.array(values, dtype=np.float64), clusters or [str(index) for index in range(len(values))])


def test_the_interval_of_independent_queries_is_the_binomial_one():
    values = [1.0] * 300 + [0.0] * 700
    low, high = interval([scored(values)], num_resamples=4000, seed=0)
    half = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)


def test_all_right_and_all_wrong_are_no_certainty():
    assert interval([scored([0.0] * 20)], num_resamples=200, seed=0) == (0.0, pytest.approx(0.1684, abs=1e-4))
    assert interval([scored([1.0] * 20)], num_resamples=200, seed=0) == (pytest.approx(0.8316, abs=1e-4), 1.0)
    # Twenty queries about two concepts know as little as two queries.
    low, _ = interval([scored([1.0] * 20, ["a", "b"] * 10)], num_resamples=200, seed=0)
    assert low == pytest.approx(0.025**0.5)


def test_the_seed_decides_and_the_mean_is_within():
    group = scored(list(np.random.default_rng(3).random(40)))
    first = interval([group], num_resamples=300, seed=1)
    assert first == interval([group], num_resamples=300, seed=1)
    assert first != interval([group], num_resamples=300, seed=2)
    assert first[0] < group.values.mean() < first[1]


def test_two_directions_share_their_draws():
    """Where both directions succeed on the same concepts, their mean varies as one of them does."""
    values = [1.0] * 30 + [0.0] * 70
    group = scored(values)
    assert interval([group, group], num_resamples=500, seed=0) == pytest.approx(
        interval([group], num_resamples=500, seed=0)
    )


def test_blocks_have_the_draws_of_the_whole(with_small_blocks):
    usual, small = with_small_blocks(lambda _: list(draws(5, 40, 1)))
    assert len(small) > len(usual) == 1
    assert np.array_equal(np.concatenate(small), usual[0])


def test_no_query_has_no_interval():
    with pytest.raises(ValueError, match="at least one"):
        interval([scored([])], num_resamples=200, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        interval([], num_resamples=200, seed=0)


def test_figures_of_one_set_share_their_draws():
    rng = np.random.default_rng(0)
    one, other = (scored(list(rng.random(40))) for _ in range(2))
    together = intervals([[one], [one, other], [scored([1.0] * 40)]], num_resamples=300, seed=1)
    alone = [interval(groups, num_resamples=300, seed=1) for groups in ([one], [one, other], [scored([1.0] * 40)])]
    assert np.array(together) == pytest.approx(np.array(alone))
    assert intervals([], num_resamples=300, seed=1) == []
    with pytest.raises(ValueError, match="at least one query"):
        intervals([[one], []], num_resamples=300, seed=1)


def part(values, clusters, name="a", weight=1.0):
    return Part(name, weight, Scored(np.array(values, dtype=np.float64), list(clusters)))


def ranked(*ranks, clusters="abcd"):
    number = len(ranks)
    return Ranked(
        tuple(map(str, range(number))), tuple(clusters[:number]), None, np.array(ranks), np.ones(number, np.int64), 20
    )


def models(*pairs):
    """Candidate and champion from (image to text, text to image) ranks of one set."""
    ways = ("image_to_text", "text_to_image")
    mine, theirs = (
        QueryRanks({"s": "d"}, {("s", way): ranked(*ranks) for way, ranks in zip(ways, both, strict=True)})
        for both in pairs
    )
    return mine, theirs


def test_a_metric_is_the_mean_of_its_directions():
    mine, theirs = models(((1, 1, 6, 20), (1, 1, 1, 1)), ((1, 20, 6, 20), (1, 1, 1, 20)))
    assert [p.differences.values.tolist() for p in of_metrics(["s/image_to_text/recall@1"], mine, theirs)] == [
        [0, 1, 0, 0]
    ]
    both = of_metrics(["s/mean_recall", "s/text_to_image/recall@5"], mine, theirs)
    assert [one.weight for one in both] == [0.25, 0.25, 0.5]
    assert difference(both, confidence=0.95, num_resamples=200).value == pytest.approx(0.25)
    with pytest.raises(DataError, match="'s/knn/accuracy' was not measured; the measured sets are s"):
        of_metrics(["s/knn/accuracy"], mine, theirs)


def test_other_queries_are_an_error():
    mine, _ = models(((1, 1), (1, 1)), ((1, 1), (1, 1)))
    other = QueryRanks(mine.sets, {key: ranked(1, 1, clusters="ba") for key in mine.ranked})
    with pytest.raises(ValueError, match="different queries"):
        of_metrics(["s/mean_recall"], mine, other)


def test_the_error_is_that_of_the_clusters():
    """Of single queries it is the usual standard error; copies of each query change nothing."""
    values = [1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0]
    one = difference([part(values, "abcdefgh")], confidence=0.95)
    assert one.error == pytest.approx(np.std(values, ddof=1) / 8**0.5)
    assert one.low < one.value < one.high and one.num_units == 8
    copies = difference([part(values * 3, "abcdefgh" * 3)], confidence=0.95)
    assert (copies.error, copies.low, copies.high) == pytest.approx((one.error, one.low, one.high))


def test_sets_that_share_concepts_are_drawn_together_and_others_apart():
    values = [1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0]
    alone = difference([part(values, "abcdefgh")], confidence=0.95)
    shared = difference([part(values, "abcdefgh", "a", 0.5), part(values, "abcdefgh", "b", 0.5)], confidence=0.95)
    assert (shared.error, shared.num_units) == (pytest.approx(alone.error), 8)  # the second set says nothing new
    apart = difference([part(values, "abcdefgh", "a", 0.5), part(values, "ijklmnop", "b", 0.5)], confidence=0.95)
    assert (apart.error, apart.num_units) == (pytest.approx(alone.error / 2**0.5), 16)
    assert apart.low > shared.low


def test_units_that_all_differ_alike_are_no_certainty():
    same = difference([part([0.0] * 8, "abcdefgh")], confidence=0.95)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = difference([part([0.5] * 8, "abcdefgh")], confidence=0.95)
    share = 0.05 ** (1 / 8)
    assert better.low == pytest.approx(0.5 * share - (1 - share)) and better.high == 0.5
    worse = difference([part([-0.5] * 8, "abcdefgh")], confidence=0.95)
    assert (worse.low, worse.high) == (-0.5, pytest.approx(-better.low))
    one = difference([part([1.0], "a")], confidence=0.95)
    assert one.low < 0  # a single concept proves nothing


@pytest.mark.parametrize(("metric", "name"), [
    ("concepts/mean_recall", "concepts"),
    ("concepts/image_to_text/mean_recall", "concepts"),
    ("a/b/text_to_image/recall@10", "a/b"),
    ("a/b/zero_shot/accuracy", "a/b"),
])  # fmt: skip
def test_the_set_of_a_metric(metric, name):
    assert set_of(metric) == name


def test_numbers_do_not_depend_on_how_positions_are_cut():
    positions = np.arange(100, dtype=np.int64)
    whole = uniforms(3, 5, Purpose.CROP, positions, 3)
    parts = [uniforms(3, 5, Purpose.CROP, positions[start : start + 7], 3) for start in range(0, 100, 7)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_every_part_of_the_key_matters():
    positions = np.arange(50, dtype=np.int64)
    streams = [
        uniforms(seed, epoch, purpose, positions, 1)
        for seed in (0, 1)
        for epoch in (0, 1)
        for purpose in (Purpose.TEXT, Purpose.DEPTH)
    ]
    for index, stream in enumerate(streams):
        for other in streams[:index]:
            assert abs(np.corrcoef(stream[:, 0], other[:, 0])[0, 1]) < 0.5


def test_numbers_are_uniform():
    numbers = uniforms(0, 0, Purpose.CROP, np.arange(20_000, dtype=np.int64), 2)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    counts, _ = np.histogram(numbers[:, 0], bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 200
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03


def test_the_order_of_an_epoch_is_a_permutation_of_its_own():
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == second).mean() < 0.02
    assert np.array_equal(first, permutation(0, 0, 1000))
