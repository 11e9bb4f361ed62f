"""Ranks of the best right item against sorting by hand, and recall against CLIP_benchmark's own figures."""

import json
from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.recall import Direction
from align.evaluate.protocols.retrieval import best_ranks, both_ways, retrieval_scores
from tests.golden import clip_benchmark_figures
from tests.golden.embeddings import own_positives


def indices(*rows):
    return [np.array(row, dtype=np.int64) for row in rows]


def sorted_by_hand(similarity, positives, own):
    """The same by a full sort of each query's items, wrong ones first among equals."""
    found = []
    for query, right in enumerate(positives):
        items = [item for item in range(similarity.shape[1]) if not (own and item == query)]
        items.sort(key=lambda item: (-similarity[query, item], item in right))
        if right:
            found.append(next(rank for rank, item in enumerate(items, start=1) if item in right))
    return found


def every_order(row, right):
    """Recall at each K of a query in each order that sorts its items by similarity."""
    found = []
    for order in permutations(range(len(row))):
        if any(row[one] < row[other] for one, other in pairwise(order)):
            continue
        first = next(rank for rank, item in enumerate(order, start=1) if item in right)
        found.append({k: Fraction(first <= k) for k in (1, 2, 3, 5)})
    return found


def test_recall_is_the_mean_over_all_orders_of_equal_items():
    rng, num_tied = np.random.default_rng(3), 0
    for _ in range(60):
        row = rng.integers(0, 3, 6).astype(np.float64)  # three values: ties everywhere
        right = set(rng.choice(6, rng.integers(1, 5), replace=False).tolist())
        every = every_order(row, right)
        found = best_ranks(row[None], np.eye(6), indices(sorted(right)), [0])
        for k in every[0]:
            orders = [float(order[k]) for order in every]
            assert float(found.hits(k).values[0]) == pytest.approx(float(np.mean(orders)), abs=1e-12), k
            num_tied += min(orders) < max(orders)
    assert num_tied > 30


@pytest.mark.parametrize("own", [False, True])
def test_ranks_equal_a_full_sort_with_many_ties(own):
    rng = np.random.default_rng(0)
    for _ in range(100):
        num_queries = num_items = int(rng.integers(2, 9))
        if not own:
            num_items += 3
        similarity = rng.integers(0, 4, (num_queries, num_items)).astype(np.float64)  # four values: ties everywhere
        chosen = [rng.choice(num_items, rng.integers(0, 4)) for _ in range(num_queries)]  # repeated, or none
        chosen = [items[items != query] if own else items for query, items in enumerate(chosen)]
        if not any(map(len, chosen)):
            continue
        found = best_ranks(similarity, np.eye(num_items), chosen, range(num_queries), without_own=own)
        right = [set(items.tolist()) for items in chosen]
        assert found.ranks.tolist() == sorted_by_hand(similarity, right, own)
        assert found.clusters == [query for query, items in enumerate(chosen) if len(items)]
        assert found.num_correct == [len(items) for items in right if items]
        assert found.num_items == num_items - own


def test_blocks_change_nothing(with_small_blocks):
    images, texts, image_of_text = clip_benchmark_figures.retrieval_inputs()
    right, units = own_positives(image_of_text, len(images)), (range(len(images)), range(len(texts)))
    whole, parts = with_small_blocks(lambda _: both_ways(images, texts, right, units))
    for way, found in whole.items():
        assert (found.ranks == parts[way].ranks).all()


def test_embeddings_kept_as_float16_are_widened():
    images, texts, image_of_text = clip_benchmark_figures.retrieval_inputs()
    half = images.astype(np.float16), texts.astype(np.float16)
    wide = half[0].astype(np.float32), half[1].astype(np.float32)
    right, units = own_positives(image_of_text, len(images)), (range(len(images)), range(len(texts)))
    for way, found in both_ways(*half, right, units).items():
        assert (found.ranks == both_ways(*wide, right, units)[way].ranks).all()


def test_recall_equals_clip_benchmark():
    golden = json.loads(clip_benchmark_figures.FILE.read_text())["retrieval"]
    images, texts, image_of_text = clip_benchmark_figures.retrieval_inputs()
    units = range(len(images)), image_of_text.tolist()
    found = both_ways(images, texts, own_positives(image_of_text, len(images)), units)
    names = {"image_to_text": "text_retrieval_recall@{}", "text_to_image": "image_retrieval_recall@{}"}
    for way, name in names.items():
        scores = retrieval_scores(found[way], num_resamples=50, seed=0)
        for k in (1, 5, 10):
            assert scores[f"recall@{k}"].value == pytest.approx(golden[name.format(k)], abs=1e-6)


def test_equal_captions_tie_wherever_they_stand():
    """A product of matrices may round at its edge in another way than inside: equal rows must give equal values."""
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((number, 640), dtype=np.float32) for number in (37, 1003))
    texts[[5, 500, 1002]] = texts[1001]
    found = best_ranks(images, texts, indices(*([[5]] * 37)), range(37))
    assert found.ties is not None and (found.ties == [3, 1]).all()


def test_scores_have_intervals_by_image():
    """Five captions of one image that stand or fall together say no more than one."""
    image_of_text = np.repeat(np.arange(60), 5)
    ranked = np.where(image_of_text % 3 == 0, 1, 7)
    by_image, by_text = (
        retrieval_scores(Direction(ranked, [1] * 300, 60, units), num_resamples=500, seed=0)
        for units in (image_of_text.tolist(), range(300))
    )
    assert list(by_image) == ["recall@1", "recall@5", "recall@10"]
    assert by_image["recall@10"].value == 1.0 > by_image["recall@10"].low
    wide, narrow = by_image["recall@1"], by_text["recall@1"]
    assert wide.value == narrow.value == pytest.approx(1 / 3)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(5**0.5, rel=0.15)
    assert wide.chance == pytest.approx(1 / 60)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(broken):
    good, bad = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    bad[1, 1] = broken
    for queries, items in ((good, bad), (bad, good)):
        with pytest.raises(DataError, match="finite"), np.errstate(invalid="ignore"):
            best_ranks(queries, items, indices([0], [1], [2]), range(3))


@pytest.mark.parametrize(("positives", "message"), [
    (indices([0], [1]), "2 lists of positives for 3 queries"),
    (indices([], [], []), "no query has a right item"),
    (indices([0], [3], [1]), "index 3"),
    (indices([0], [-1], [1]), "least -1"),
])  # fmt: skip
def test_positives_that_do_not_fit(positives, message):
    with pytest.raises(DataError, match=message):
        best_ranks(np.eye(3), np.eye(3), positives, range(3))


def test_shapes_that_do_not_fit():
    with pytest.raises(DataError, match="one width"):
        best_ranks(np.eye(3), np.eye(4), indices([0], [0], [0]), range(3))
    with pytest.raises(DataError, match="3 queries and 4 items"):
        best_ranks(np.eye(3), np.eye(4, 3), indices([0], [0], [0]), range(3), without_own=True)
    with pytest.raises(DataError, match="query 1 is its own right item"):
        best_ranks(np.eye(2), np.eye(2), indices([1], [1]), range(2), without_own=True)
    with pytest.raises(DataError, match="2 clusters for 3 queries"):
        best_ranks(np.eye(3), np.eye(3), indices([0], [1], [2]), range(2))
