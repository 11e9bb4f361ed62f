"""Figures of classification by similarities to class embeddings: top-1, top-5 and the mean over the classes.

The right class's rank counts; a tie for its place counts against the model, where published code takes the class of the
lowest index. The interval of top-1 and top-5 resamples images (or the concepts that they show). So does that of the
mean over the classes: a replicate's mean is over the classes that it drew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.errors import DataError
from align.evaluate.protocols.recall import Direction, Score
from align.evaluate.protocols.scoring import Figure, scores
from align.statistics.intervals import bounds, draws

#: The K of published tables.
TOP = (1, 5)
#: Numbers of some replicates in memory at once: 8 MB an array.
_BLOCK = 1 << 20


def classification_scores(
    ranked: Direction, labels: Sequence[int], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """`top1`, `top5` (with five classes or more) and `mean_per_class`, the mean of the accuracies of the classes.

    Args:
        ranked: of the class of each image, see `align.evaluate.protocols.zero_shot`.
        labels: (num_images,) the right classes. A class without an image has no accuracy and is left out.

    Raises:
        DataError: there is no image, or labels and ranks differ in number.
    """
    if len(labels) != len(ranked.ranks):
        raise DataError(f"{len(labels)} labels for {len(ranked.ranks)} images")
    tops = [k for k in TOP if k <= max(ranked.num_items, 1)]
    figures = {f"top{k}": Figure([ranked.hits(k)], ranked.chance(k)) for k in tops}
    found = scores(figures, num_resamples=num_resamples, seed=seed)
    found["mean_per_class"] = _mean_per_class(ranked, labels, num_resamples=num_resamples, seed=seed)
    return found


def per_class(ranked: Direction, labels: Sequence[int]) -> dict[int, float]:
    """The top-1 accuracy of each class that has an image."""
    classes, of = np.unique(np.asarray(labels, dtype=np.int64), return_inverse=True)
    right = np.bincount(of, weights=ranked.hits(1).values, minlength=len(classes))
    return dict(zip(classes.tolist(), (right / np.bincount(of)).tolist(), strict=True))


def _mean_per_class(ranked: Direction, labels: Sequence[int], *, num_resamples: int, seed: int) -> Score:
    """The groups' means of `align.statistics.intervals` would need a row of clusters for each of a thousand classes."""
    hits = ranked.hits(1).values
    index = {cluster: position for position, cluster in enumerate(dict.fromkeys(ranked.clusters))}
    order = np.argsort(np.asarray(labels, dtype=np.int64), kind="stable")  # the images of a class beside each other
    of_cluster = np.array([index[cluster] for cluster in ranked.clusters])[order]
    starts = np.flatnonzero(np.diff(np.asarray(labels, dtype=np.int64)[order], prepend=-1))
    mean = float(np.mean(list(per_class(ranked, labels).values())))
    means = []
    for block in draws(len(index), num_resamples, seed):
        for part in np.array_split(block, 1 + block.shape[0] * len(order) // _BLOCK):
            times = part[:, of_cluster]
            number = np.add.reduceat(times, starts, axis=1)
            right = np.add.reduceat(times * hits[order], starts, axis=1)
            accuracy = np.divide(right, number, out=np.zeros_like(right), where=number > 0)
            means.append(accuracy.sum(axis=1) / np.count_nonzero(number, axis=1))
    chance = 1 / ranked.num_items
    return Score(mean, *bounds(mean, len(index), np.concatenate(means)), chance)
