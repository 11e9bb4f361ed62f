"""Figures of classification by similarities to class embeddings: top-1, top-5 and the mean over the classes.

ImageNet-A and ImageNet-R have 200 of ImageNet's 1,000 classes. Their images are classified among those 200 only
(Hendrycks et al., 2021), with ImageNet's class embeddings: `among` masks the rest. ImageNet V2 needs nothing but its
images.

The right class's rank counts; a tie for its place counts against the model, where published code takes the class of the
lowest index. The interval of top-1 and top-5 resamples images (or the concepts that they show). So does that of the
mean over the classes: a replicate's mean is over the classes that it drew.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Direction, Score, ranks_by_embedding
from align.evaluate.protocols.scoring import Figure, scores
from align.intervals import bounds, draws

#: The K of published tables.
TOP = (1, 5)
#: Numbers of some replicates in memory at once: 8 MB an array.
_BLOCK = 1 << 20


def among(classes: Sequence[int], num_classes: int, labels: Sequence[int]) -> tuple[NDArray[np.int64], list[int]]:
    """A class mask: the rows of the class embeddings to keep, and the labels as indices into them.

    Args:
        classes: the classes that images are classified among, as indices of all classes. Their order is kept.
        num_classes: of all classes.
        labels: (num_images,) the right classes, as indices of all classes.

    Raises:
        DataError: a class is repeated or is none of them, or the class of an image is masked.
    """
    kept = np.asarray(classes, dtype=np.int64)
    if not len(kept) or not 0 <= kept.min() <= kept.max() < num_classes or len(np.unique(kept)) < len(kept):
        raise DataError(f"a mask of {len(kept)} classes: they must be distinct, and from 0 to {num_classes - 1}")
    position = {int(one): index for index, one in enumerate(kept)}
    if unknown := sorted(set(labels) - position.keys()):
        raise DataError(f"{len(unknown)} class(es) of images are not in the mask, the first is {unknown[0]}")
    return kept, [position[label] for label in labels]


def class_ranks(
    image_embeds: NDArray[np.float32],
    class_embeds: NDArray[np.float32],
    labels: Sequence[int],
    clusters: Sequence[Hashable],
) -> Direction:
    """The rank of each image's class.

    Args:
        image_embeds: (num_images, width), L2-normalised.
        class_embeds: (num_classes, width), L2-normalised: those of the mask.
        labels: (num_images,) the right classes.
        clusters: (num_images,) the concept of each image, or its index.

    Raises:
        DataError: shapes do not fit, a label is no class, or an embedding is not finite.
    """
    if image_embeds.ndim != 2 or class_embeds.ndim != 2 or image_embeds.shape[1] != class_embeds.shape[1]:
        raise DataError(f"images {image_embeds.shape} and classes {class_embeds.shape} are no embeddings of one width")
    if not len(image_embeds) == len(labels) == len(clusters):
        raise DataError(f"{len(image_embeds)} images, {len(labels)} labels, {len(clusters)} clusters")
    right = np.asarray(labels, dtype=np.int64)
    if not len(right) or not 0 <= right.min() <= right.max() < len(class_embeds):
        raise DataError(f"labels must be from 0 to {len(class_embeds) - 1}, and there must be one")
    if not (np.isfinite(image_embeds).all() and np.isfinite(class_embeds).all()):
        raise DataError("embeddings are not finite: the model is broken; train it again")
    found = ranks_by_embedding(image_embeds, class_embeds, list(right[:, np.newaxis]))
    return Direction(found, [1] * len(right), len(class_embeds), clusters)


def classification_scores(
    ranked: Direction, labels: Sequence[int], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """`top1`, `top5` (with five classes or more) and `mean_per_class`, the mean of the accuracies of the classes.

    Args:
        ranked: as `class_ranks` gives it.
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
    """The groups' means of `align.intervals` would need a row of clusters for each of a thousand classes."""
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
