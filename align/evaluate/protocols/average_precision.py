"""Mean average precision of pictures that have any number of classes, such as VOC2007's, as CLIP_benchmark computes it.

Pictures are ranked by their similarity to a class. The average precision of the class is the mean, over the pictures
that have it, of the share of such pictures among those up to it: all points, no interpolation as in VOC's own devkit.
The figure is the mean over the classes. A picture without the class ranks before one of equal similarity that has it;
CLIP_benchmark sorts, so that order decides.

The interval resamples pictures. In a replicate the copies of a picture stand at one rank, with the precision behind the
last of them. It is about sets of this size: average precision falls as pictures are added. There is no published
formula for the value of a random order; `chance` is its expectation.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Score
from align.statistics.intervals import bounds, draws


def average_precisions(similarity: NDArray[np.floating], has: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(num_classes,) in [0, 1]; 0 of a class that no picture has.

    Args:
        similarity: (num_images, num_classes).
        has: (num_images, num_classes) whether the picture has the class.

    Raises:
        DataError: shapes differ, there is no picture or class, or a similarity is not finite.
    """
    _require(similarity, has)
    once = np.ones((1, len(has)))
    return np.array([_weighted(once, _ranked(similarity, has, one))[0] for one in range(has.shape[1])])


def mean_average_precision(
    similarity: NDArray[np.floating],
    has: NDArray[np.bool_],
    clusters: Sequence[Hashable],
    *,
    num_resamples: int,
    seed: int,
) -> Score:
    """The mean over the classes.

    Args:
        similarity, has: as `average_precisions`.
        clusters: (num_images,) what is independent: the picture itself, or its concept.

    Raises:
        DataError: as `average_precisions`.
    """
    value = float(average_precisions(similarity, has).mean())
    index: dict[Hashable, int] = {}
    of = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    ranked = [_ranked(similarity, has, one) for one in range(has.shape[1])]
    means = []
    for drawn in draws(len(index), num_resamples, seed):
        weights = drawn[:, of]
        means.append(np.mean([_weighted(weights, one) for one in ranked], axis=0))
    low, high = bounds(value, len(index), np.concatenate(means))
    by_chance = np.mean([chance(int(number), len(has)) for number in has.sum(axis=0)])
    return Score(value, low, high, float(by_chance))


def chance(num_right: int, num_items: int) -> float:
    """The average precision that a random order is expected to have.

    At rank r stands a right item with probability R / N; before it, (r - 1)(R - 1) / (N - 1) others are expected. The
    mean over the R right items is then that over all ranks.
    """
    if not num_right:
        return 0.0
    ranks = np.arange(1, num_items + 1)
    return float(np.mean((1 + (ranks - 1) * (num_right - 1) / max(num_items - 1, 1)) / ranks))


def _ranked(
    similarity: NDArray[np.floating], has: NDArray[np.bool_], one: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The pictures from the first rank to the last for a class, and which of them have it."""
    order = np.lexsort((has[:, one], -similarity[:, one]))
    return order, has[order, one]


def _weighted(weights: NDArray[np.float64], ranked: tuple[NDArray[np.int64], NDArray[np.bool_]]) -> NDArray[np.float64]:
    """(num_replicates,) the average precision where each picture is there `weights` times."""
    order, right = ranked
    some = weights[:, order]
    num_right = np.cumsum(some * right, axis=1)[:, right]
    precision = num_right / np.maximum(np.cumsum(some, axis=1)[:, right], 1)
    counted = some[:, right]
    total: NDArray[np.float64] = (counted * precision).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return total


def _require(similarity: NDArray[np.floating], has: NDArray[np.bool_]) -> None:
    if similarity.shape != has.shape or similarity.ndim != 2 or not similarity.size:
        raise DataError(f"similarities {similarity.shape}, but labels {has.shape}; expected (images, classes)")
    if not np.isfinite(similarity).all():
        raise DataError("similarities are not finite: the model's embeddings are broken; train it again")
