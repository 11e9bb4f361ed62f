"""Ranks of several right items against sorting by hand, and the figures against eccv_caption."""

import json
from fractions import Fraction
from itertools import pairwise, permutations

import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols import retrieval
from align.evaluate.protocols.folds import recall_in_folds, text_folds
from align.evaluate.protocols.recall import recall
from align.evaluate.protocols.retrieval import (
    Captioned,
    PositiveRanks,
    both_ways,
    own_positives,
    positive_ranks,
    retrieval_scores,
)
from align.formats.caption_positives import placed_positives
from tests.golden import clip_benchmark_figures, eccv_caption_figures

CUTS = (1, 5, 10)


def indices(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def of_each_query(found: PositiveRanks) -> list[list[int]]:
    return [part.tolist() for part in np.split(found.ranks, found.starts[1:-1])]


def sorted_by_hand(similarity: np.ndarray, positives: list[set[int]], own: bool, ties: str) -> list[list[int]]:
    """The same by a full sort of each query's items."""
    found = []
    for query, right in enumerate(positives):
        items = [item for item in range(similarity.shape[1]) if not (own and item == query)]
        items.sort(key=lambda item: (-similarity[query, item], (item in right) == (ties == "against")))
        if right:
            found.append([rank for rank, item in enumerate(items, start=1) if item in right])
    return found


def every_order(row: np.ndarray, right: set[int]) -> list[dict[str, Fraction]]:
    """The figures of a query in each order that sorts its items by similarity."""
    found = []
    for order in permutations(range(len(row))):
        if any(row[one] < row[other] for one, other in pairwise(order)):
            continue
        ranks, r = [rank for rank, item in enumerate(order, start=1) if item in right], len(right)
        precision = [Fraction(number, rank) for number, rank in enumerate(ranks, start=1) if rank <= r]
        found.append({
            **{f"recall@{k}": Fraction(ranks[0] <= k) for k in (1, 2, 3, 5)},
            "r_precision": Fraction(sum(rank <= r for rank in ranks), r),
            "map_at_r": Fraction(sum(precision), r),
        })  # fmt: skip
    return found


@pytest.mark.costs(8, "sorts six items in all of their orders, for 60 queries")
def test_figures_are_the_mean_over_all_orders_of_equal_items_and_ends_its_bounds() -> None:
    rng, num_tied = np.random.default_rng(3), 0
    for _ in range(60):
        row = rng.integers(0, 3, 6).astype(np.float64)  # three values: ties everywhere
        right = set(rng.choice(6, rng.integers(1, 5), replace=False).tolist())
        every = every_order(row, right)
        found = positive_ranks(row[None], np.eye(6), indices(sorted(right)))
        for name in every[0]:
            orders = [float(order[name]) for order in every]
            ours, *ends = (
                float(of.recall(int(name[7:]))[0] if name.startswith("recall") else getattr(of, name)()[0])
                for of in (found, *found.ends())
            )
            assert ours == pytest.approx(float(np.mean(orders)), abs=1e-12), name
            assert ends == pytest.approx([min(orders), max(orders)], abs=1e-12), name
            num_tied += min(orders) < max(orders)
    assert num_tied > 100


@pytest.mark.parametrize("ties", ["against", "for"])
@pytest.mark.parametrize("own", [False, True])
def test_ranks_equal_a_full_sort_with_many_ties(ties: str, own: bool) -> None:
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
        asked = positive_ranks(similarity, np.eye(num_items), chosen, without_own=own)
        found = asked.ends()[ties == "for"]
        assert of_each_query(found) == sorted_by_hand(similarity, [set(items.tolist()) for items in chosen], own, ties)
        assert found.queries.tolist() == [query for query, items in enumerate(chosen) if len(items)]
        assert found.num_items == num_items - own


def test_chance_is_what_random_similarities_reach() -> None:
    rng = np.random.default_rng(0)
    chosen = [rng.choice(12, size=1 + query % 4, replace=False) for query in range(20_000)]
    found = positive_ranks(rng.random((20_000, 12)), np.eye(12), chosen)
    by_r, by_map = found.chances()
    assert found.r_precision().mean() == pytest.approx(by_r, abs=0.005)
    assert found.map_at_r().mean() == pytest.approx(by_map, abs=0.005)
    direction = found.direction(range(20_000))
    assert found.recall(5).mean() == pytest.approx(direction.chance(5), abs=0.01)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, image_of_text = clip_benchmark_figures.retrieval_inputs()
    positives = own_positives(image_of_text.tolist(), len(images))
    whole = both_ways(images, texts, positives)
    monkeypatch.setattr(retrieval, "BLOCK_BYTES", 4 * len(texts) * 7)  # seven images at a time
    parts = both_ways(images, texts, positives)
    for way, found in whole.items():
        assert (found.ranks == parts[way].ranks).all()


def test_embeddings_kept_as_float16_are_widened() -> None:
    images, texts, image_of_text = clip_benchmark_figures.retrieval_inputs()
    half = images.astype(np.float16), texts.astype(np.float16)
    wide = half[0].astype(np.float32), half[1].astype(np.float32)
    positives = own_positives(image_of_text.tolist(), len(images))
    for way, found in both_ways(*half, positives).items():
        assert (found.ranks == both_ways(*wide, positives)[way].ranks).all()


def test_all_figures_equal_eccv_caption() -> None:
    golden = json.loads(eccv_caption_figures.FILE.read_text())["small"]
    of = eccv_caption_figures.small()
    own = own_positives(of.image_of_text.tolist(), len(of.images))
    published = both_ways(of.images, of.texts, own)
    with_captions = Captioned(of.images, of.texts, of.image_of_text.tolist(), range(len(of.images)))
    one_k = recall_in_folds(with_captions, num_resamples=50, seed=0)
    more = both_ways(
        of.images,
        of.texts,
        (
            placed_positives(of.more[0], of.image_ids.tolist(), of.text_ids.tolist()),
            placed_positives(of.more[1], of.text_ids.tolist(), of.image_ids.tolist()),
        ),
    )
    assert 0 < len(more["image_to_text"].queries) < len(of.images)  # some images are no queries
    for way, short in (("image_to_text", "i2t"), ("text_to_image", "t2i")):
        ours = {
            **{f"coco_1k_r{k}": one_k[f"{way}/recall@{k}"].value for k in CUTS},
            **{f"coco_5k_r{k}": published[way].recall(k).mean() for k in CUTS},
            **{f"cxc_r{k}": more[way].recall(k).mean() for k in CUTS},
            "eccv_r1": more[way].recall(1).mean(),
            "eccv_rprecision": more[way].r_precision().mean(),
            "eccv_map_at_r": more[way].map_at_r().mean(),
        }
        assert ours == pytest.approx({name: values[short] for name, values in golden.items()}, abs=1e-9)
        assert ours.keys() == golden.keys()


def test_equal_captions_tie_wherever_they_stand() -> None:
    """A product of matrices may round at its edge in another way than inside: equal rows must give equal values."""
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((number, 640), dtype=np.float32) for number in (37, 1003))
    texts[[5, 500, 1002]] = texts[1001]
    positives = indices(*([[5]] * 37))
    found = positive_ranks(images, texts, positives)
    against, best = found.ends()
    assert (against.first - best.first == 3).all()
    score = recall(found.direction(range(37)), 10, num_resamples=50, seed=0)
    assert score.ends is not None
    assert score.ends[0] <= score.value <= score.ends[1]


def test_own_positives_and_an_image_without_a_text() -> None:
    of_image, of_text = own_positives([2, 0, 2], 4)
    assert [items.tolist() for items in of_image] == [[1], [], [0, 2], []]
    assert [items.tolist() for items in of_text] == [[2], [0], [2]]
    with pytest.raises(DataError, match="image 4"):
        own_positives([0, 4], 4)


def test_scores_have_intervals_by_image() -> None:
    """Five captions of one image that stand or fall together say no more than one."""
    image_of_text = np.repeat(np.arange(60), 5)
    ranked = np.where(image_of_text % 3 == 0, 1, 7)
    found = PositiveRanks(np.arange(300), np.arange(301), ranked, num_items=60)
    by_image = retrieval_scores(found, image_of_text.tolist(), num_resamples=500, seed=0)
    by_text = retrieval_scores(found, range(300), num_resamples=500, seed=0)
    assert list(by_image) == ["recall@1", "recall@5", "recall@10", "r_precision", "map_at_r"]
    assert by_image["recall@10"].value == 1.0 > by_image["recall@10"].low
    wide, narrow = by_image["recall@1"], by_text["recall@1"]
    assert wide.value == narrow.value == pytest.approx(1 / 3)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(5**0.5, rel=0.15)
    assert wide.chance == pytest.approx(1 / 60)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_embeddings_that_are_not_finite(broken: float) -> None:
    good, bad = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
    bad[1, 1] = broken
    for queries, items in ((good, bad), (bad, good)):
        with pytest.raises(DataError, match="finite"), np.errstate(invalid="ignore"):
            positive_ranks(queries, items, indices([0], [1], [2]))


@pytest.mark.parametrize(
    ("positives", "message"),
    [
        (indices([0], [1]), "2 lists of positives for 3 queries"),
        (indices([], [], []), "no query has a right item"),
        (indices([0], [3], [1]), "index 3"),
        (indices([0], [-1], [1]), "least -1"),
    ],
)
def test_positives_that_do_not_fit(positives: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        positive_ranks(np.eye(3), np.eye(3), positives)


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(DataError, match="one width"):
        positive_ranks(np.eye(3), np.eye(4), indices([0], [0], [0]))
    with pytest.raises(DataError, match="3 queries and 4 items"):
        positive_ranks(np.eye(3), np.eye(4, 3), indices([0], [0], [0]), without_own=True)
    with pytest.raises(DataError, match="query 1 is its own right item"):
        positive_ranks(np.eye(2), np.eye(2), indices([1], [1]), without_own=True)
    with pytest.raises(DataError, match="2 clusters, but query 2 was asked"):
        positive_ranks(np.eye(3), np.eye(3), indices([0], [1], [2])).direction(range(2))
    with pytest.raises(DataError, match="do not make 5 folds"):
        text_folds([0, 0, 1])
