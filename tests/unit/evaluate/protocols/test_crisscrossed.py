import numpy as np
import pytest

from align.errors import DataError
from align.evaluate.protocols.crisscrossed import (
    Crisscrossed,
    Rated,
    crisscrossed_correlations,
    crisscrossed_ranks,
    pair_similarities,
)
from align.evaluate.protocols.recall import recall
from tests.golden.embeddings import captioned


def pairs(*rows):
    first, second, ratings = zip(*rows, strict=True)
    return Rated(np.array(first), np.array(second), np.array(ratings))


def unit(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


#: Three images, four captions: 0 and 1 of image 0, then one of each other image.
IMAGES, TEXTS, IMAGE_OF_TEXT = unit(0, 40, 90), unit(5, 65, 42, 80), [0, 0, 1, 2]
RATED = Crisscrossed(
    sts=pairs((0, 1, 2.9), (1, 3, 3.0), (2, 3, 4.0), (0, 2, 1.0)),
    sis=pairs((0, 1, 2.5), (1, 2, 2.4), (2, 1, 2.6), (2, 0, 0.0)),
    # The original pair of caption 1 is rated below 3: it is not right, and caption 1 has no other image.
    sits=pairs((0, 0, 5.0), (1, 0, 2.9), (2, 1, 3.0), (3, 2, 4.0), (3, 1, 3.5)),
)


def test_positives_follow_the_ratings_and_not_the_original_pairs():
    found = crisscrossed_ranks(IMAGES, TEXTS, RATED, (range(3), range(4)))
    ranks = {
        name: {query: of for query, *of in zip(one.clusters, one.ranks.tolist(), one.num_correct, strict=True)}
        for name, one in found.items()
    }
    assert ranks == {  # query -> rank of its best right item, and the number of right ones
        "image_to_text": {0: [1, 1], 1: [1, 2], 2: [1, 1]},
        "text_to_image": {0: [1, 1], 2: [1, 1], 3: [1, 2]},  # caption 1 is no query
        "text_to_text": {1: [1, 1], 2: [3, 1], 3: [1, 2]},  # caption 0 is no query: its co-caption is rated 2.9
        "image_to_image": {0: [1, 1], 1: [1, 2], 2: [1, 1]},  # 2.5 is right; 1 and 2 by the better of two ratings
    }
    assert {name: one.num_items for name, one in found.items()} == {
        "image_to_text": 4, "text_to_image": 3, "text_to_text": 3, "image_to_image": 2,
    }  # fmt: skip


def test_chance_counts_the_right_items():
    found = crisscrossed_ranks(IMAGES, TEXTS, RATED, (range(3), IMAGE_OF_TEXT))
    score = recall(found["text_to_text"], 1, num_resamples=50, seed=0)
    assert score.value == pytest.approx(2 / 3) and score.chance == pytest.approx((1 + 1 + 2) / 9)


@pytest.mark.usefixtures("any_blocks")
def test_correlations_are_those_of_the_pairs_cosines():
    images, texts, image_of_text = captioned(60, 3, width=8, noise=1.0, seed=0)
    rng = np.random.default_rng(0)

    def rate(one, other):
        first, second = rng.integers(0, len(one), 400), rng.integers(0, len(other), 400)
        near = (one[first] * other[second]).sum(axis=1)
        assert pair_similarities(one, other, first, second) == pytest.approx(near, abs=1e-6)
        return Rated(first, second, np.clip(2.5 + 2 * near + rng.normal(0, 0.3, 400), 0, 5))

    rated = Crisscrossed(rate(texts, texts), rate(images, images), rate(texts, images))
    found = crisscrossed_correlations(images, texts, rated, seed=0, num_replicates=100)
    assert list(found) == ["sts", "sis", "sits"]
    for one in found.values():
        assert 0.7 < one.mean < 1
        assert 0 < one.deviation < 0.1
    assert len(image_of_text) == len(texts)


@pytest.mark.parametrize("broken", [
    pairs((0, 4, 3.0)), pairs((-1, 0, 3.0)), Rated(np.array([0]), np.array([1]), np.array([3.0, 4.0])),
    Rated(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0)), pairs((0, 1, np.nan)),
])  # fmt: skip
def test_ratings_of_another_set(broken):
    for bad in (Crisscrossed(broken, RATED.sis, RATED.sits), Crisscrossed(RATED.sts, RATED.sis, broken)):
        with pytest.raises(DataError, match=r"must be among|not finite"):
            crisscrossed_ranks(IMAGES, TEXTS, bad, (range(3), range(4)))
        with pytest.raises(DataError, match=r"must be among|not finite"):
            crisscrossed_correlations(IMAGES, TEXTS, bad, seed=0)
