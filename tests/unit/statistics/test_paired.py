"""The paired difference against values worked out by hand."""

import numpy as np
import pytest

from align.errors import DataError
from align.formats.query_ranks import QueryRanks, Ranked
from align.statistics.intervals import Scored
from align.statistics.paired import Part, difference, of_metrics, set_of


def part(values: list[float], clusters: str, name: str = "a", weight: float = 1.0) -> Part:
    return Part(name, weight, Scored(np.array(values, dtype=np.float64), list(clusters)))


def ranked(*ranks: int, clusters: str = "abcd") -> Ranked:
    number = len(ranks)
    return Ranked(
        tuple(map(str, range(number))), tuple(clusters[:number]), None, np.array(ranks), np.ones(number, np.int64), 20
    )


def models(*pairs: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[QueryRanks, QueryRanks]:
    """Candidate and champion from (image to text, text to image) ranks of one set."""
    ways = ("image_to_text", "text_to_image")
    mine, theirs = (
        QueryRanks({"s": "d"}, {("s", way): ranked(*ranks) for way, ranks in zip(ways, both, strict=True)})
        for both in pairs
    )
    return mine, theirs


def test_a_metric_is_the_mean_of_its_directions() -> None:
    mine, theirs = models(((1, 1, 6, 20), (1, 1, 1, 1)), ((1, 20, 6, 20), (1, 1, 1, 20)))
    assert [p.differences.values.tolist() for p in of_metrics(["s/image_to_text/recall@1"], mine, theirs)] == [
        [0, 1, 0, 0]
    ]
    both = of_metrics(["s/mean_recall", "s/text_to_image/recall@5"], mine, theirs)
    assert [one.weight for one in both] == [0.25, 0.25, 0.5]
    assert difference(both, confidence=0.95, num_resamples=200).value == pytest.approx(0.25)
    with pytest.raises(DataError, match="'s/knn/accuracy' was not measured; the measured sets are s"):
        of_metrics(["s/knn/accuracy"], mine, theirs)


def test_other_queries_are_an_error() -> None:
    mine, _ = models(((1, 1), (1, 1)), ((1, 1), (1, 1)))
    other = QueryRanks(mine.sets, {key: ranked(1, 1, clusters="ba") for key in mine.ranked})
    with pytest.raises(ValueError, match="different queries"):
        of_metrics(["s/mean_recall"], mine, other)


def test_the_error_is_that_of_the_clusters() -> None:
    """Of single queries it is the usual standard error; copies of each query change nothing."""
    values = [1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0]
    one = difference([part(values, "abcdefgh")], confidence=0.95)
    assert one.error == pytest.approx(np.std(values, ddof=1) / 8**0.5)
    assert one.low < one.value < one.high and one.num_units == 8
    copies = difference([part(values * 3, "abcdefgh" * 3)], confidence=0.95)
    assert (copies.error, copies.low, copies.high) == pytest.approx((one.error, one.low, one.high))


def test_sets_that_share_concepts_are_drawn_together_and_others_apart() -> None:
    values = [1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0]
    alone = difference([part(values, "abcdefgh")], confidence=0.95)
    shared = difference([part(values, "abcdefgh", "a", 0.5), part(values, "abcdefgh", "b", 0.5)], confidence=0.95)
    assert (shared.error, shared.num_units) == (pytest.approx(alone.error), 8)  # the second set says nothing new
    apart = difference([part(values, "abcdefgh", "a", 0.5), part(values, "ijklmnop", "b", 0.5)], confidence=0.95)
    assert (apart.error, apart.num_units) == (pytest.approx(alone.error / 2**0.5), 16)
    assert apart.low > shared.low


def test_units_that_all_differ_alike_are_no_certainty() -> None:
    same = difference([part([0.0] * 8, "abcdefgh")], confidence=0.95)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = difference([part([0.5] * 8, "abcdefgh")], confidence=0.95)
    share = 0.05 ** (1 / 8)
    assert better.low == pytest.approx(0.5 * share - (1 - share)) and better.high == 0.5
    worse = difference([part([-0.5] * 8, "abcdefgh")], confidence=0.95)
    assert (worse.low, worse.high) == (-0.5, pytest.approx(-better.low))
    one = difference([part([1.0], "a")], confidence=0.95)
    assert one.low < 0  # a single concept proves nothing


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("concepts/mean_recall", "concepts"),
        ("concepts/image_to_text/mean_recall", "concepts"),
        ("a/b/text_to_image/recall@10", "a/b"),
        ("a/b/zero_shot/accuracy", "a/b"),
    ],
)
def test_the_set_of_a_metric(metric: str, name: str) -> None:
    assert set_of(metric) == name
