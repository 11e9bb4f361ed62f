"""Crisscrossed Captions (CxC): four retrievals and three correlations over COCO's test split (Parekh et al., 2021).

Positives come from ratings, in place of the original pairs:

    image-text, text-image   SITS rated 3 or more. 29 original pairs are rated below and are not right; 28 captions have
                             no right image and are not queries.
    text-text                STS rated 3 or more. The query itself is not an item. The other captions of its image are
                             right only if their rating says so (9,399 of 25,000 are rated below 3).
    image-image              SIS rated **2.5** or more. The query itself is not an item.

A rating of two captions or two images counts both ways. In the test split 2,863 pairings of images were rated in both
orders, 512 of them above the threshold in one order only: one good rating suffices here. The paper does not say how it
treats them.

The unit of the intervals is the image, also for captions. A correlation's query is the first item of each rating.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.correlation import NUM_REPLICATES, Correlation, sampled_spearman
from align.evaluate.protocols.recall import Direction
from align.evaluate.protocols.retrieval import Indices, best_ranks, both_ways

#: Ratings from which a pair is right.
STS_RIGHT, SIS_RIGHT, SITS_RIGHT = 3.0, 2.5, 3.0
_PAIRS_AT_ONCE = 4096


@dataclass(frozen=True)
class Rated:
    """Rated pairs by their positions in the set.

    Attributes:
        first, second: (num_pairs,) of captions (STS), of images (SIS), of a caption and an image (SITS).
        ratings: (num_pairs,) people's mean rating, in [0, 5].
    """

    first: Indices
    second: Indices
    ratings: NDArray[np.floating]

    def right_both_ways(self, least: float, num_first: int, num_second: int) -> tuple[list[Indices], list[Indices]]:
        """For each first item its right second ones, and for each second item its right first ones."""
        _check(self, num_first, num_second)
        right = np.asarray(self.ratings) >= least
        first, second = self.first[right], self.second[right]
        return _grouped(first, second, num_first), _grouped(second, first, num_second)

    def right_of_each(self, least: float, number: int) -> list[Indices]:
        """For each item the items that it is right for, in whichever order the pair stands."""
        one, other = self.right_both_ways(least, number, number)
        return [np.concatenate(pair) for pair in zip(one, other, strict=True)]


@dataclass(frozen=True)
class Crisscrossed:
    """The three files: rated captions, images, and pairs of a caption and an image."""

    sts: Rated
    sis: Rated
    sits: Rated


def crisscrossed_ranks(
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    rated: Crisscrossed,
    clusters: tuple[Sequence[Hashable], Sequence[Hashable]],
) -> dict[str, Direction]:
    """`image_to_text`, `text_to_image`, `text_to_text` and `image_to_image`.

    Args:
        image_embeds: (num_images, width), L2-normalised.
        text_embeds: (num_texts, width), L2-normalised.
        rated: the ratings.
        clusters: the independent unit of each image, most often its index, and the same of each text.

    Raises:
        DataError: as `best_ranks`.
    """
    num_images, num_texts = len(image_embeds), len(text_embeds)
    of_text, of_image = rated.sits.right_both_ways(SITS_RIGHT, num_texts, num_images)
    texts = rated.sts.right_of_each(STS_RIGHT, num_texts)
    images = rated.sis.right_of_each(SIS_RIGHT, num_images)
    return {
        **both_ways(image_embeds, text_embeds, (of_image, of_text), clusters),
        "text_to_text": best_ranks(text_embeds, text_embeds, texts, clusters[1], without_own=True),
        "image_to_image": best_ranks(image_embeds, image_embeds, images, clusters[0], without_own=True),
    }


def crisscrossed_correlations(
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    rated: Crisscrossed,
    *,
    seed: int,
    num_replicates: int = NUM_REPLICATES,
) -> dict[str, Correlation]:
    """`sts`, `sis` and `sits`: correlations of ratings with cosine similarities.

    Raises:
        DataError: as `sampled_spearman`.
    """
    sides = {
        "sts": (rated.sts, text_embeds, text_embeds),
        "sis": (rated.sis, image_embeds, image_embeds),
        "sits": (rated.sits, text_embeds, image_embeds),
    }
    for pairs, one, other in sides.values():
        _check(pairs, len(one), len(other))
    return {
        name: sampled_spearman(
            pairs.first, pairs.ratings, pair_similarities(one, other, pairs.first, pairs.second),
            seed=seed, num_replicates=num_replicates,
        )
        for name, (pairs, one, other) in sides.items()
    }  # fmt: skip


def pair_similarities(
    one: NDArray[np.floating], other: NDArray[np.floating], first: Indices, second: Indices
) -> NDArray[np.float64]:
    """(num_pairs,) the products of rows `first` of one and `second` of the other."""
    parts = [  # the exact value of each pair, whatever stands beside it in a matrix
        np.einsum(
            "ij,ij->i",
            one[first[start : start + _PAIRS_AT_ONCE]].astype(np.float64),
            other[second[start : start + _PAIRS_AT_ONCE]].astype(np.float64),
        )
        for start in range(0, len(first), _PAIRS_AT_ONCE)
    ]
    return np.concatenate(parts) if parts else np.empty(0)


def _check(pairs: Rated, num_first: int, num_second: int) -> None:
    for rows, number in ((pairs.first, num_first), (pairs.second, num_second)):
        if len(rows) != len(pairs.ratings) or not len(rows) or not 0 <= rows.min() <= rows.max() < number:
            raise DataError(f"{len(pairs.ratings)} ratings of pairs: their {len(rows)} items must be among {number}")
    if not np.isfinite(pairs.ratings).all():
        raise DataError("a rating is not finite")


def _grouped(keys: Indices, values: Indices, number: int) -> list[Indices]:
    order = np.argsort(keys, kind="stable")
    return np.split(values[order], np.searchsorted(keys[order], np.arange(1, number)))
