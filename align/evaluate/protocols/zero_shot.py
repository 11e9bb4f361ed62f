"""Zero-shot classification: the class whose text is nearest to the image (paper section 4.3).

Beside the accuracy there are top-1, top-5 and the mean over the classes. The right class's rank counts; of a tie for
its place the share of orders that are right, where published code takes the class of the lowest index. The interval of
top-1 and top-5 resamples images (or the concepts that they show). So does that of the mean over the classes: a
replicate's mean is over the classes that it drew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.recall import Direction, Score, recall_figure, scores
from align.evaluate.protocols.retrieval import best_ranks
from align.statistics.intervals import bounds, draws

#: The K of published tables.
TOP = (1, 5)
#: Numbers of some replicates in memory at once: 8 MB an array.
_NUMBERS_AT_ONCE = 1 << 20


def prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Returns (num_classes x num_templates) texts: every class name in every template, class by class."""
    return [template.replace("{}", name) for name in classes for template in templates]


def class_embeddings(text_embeds: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    """Prompt ensembling: the mean of the template embeddings of each class, L2-normalised.

    Args:
        text_embeds: (num_classes x num_templates, width), rows in the order of `prompts`, each L2-normalised.

    Returns:
        (num_classes, width) float32.

    Raises:
        ValueError: there is no row, or the number of rows is not a multiple of the number of classes.
    """
    if len(text_embeds) == 0 or len(text_embeds) % num_classes:
        raise ValueError(f"{len(text_embeds)} prompts do not divide into {num_classes} classes")
    means = text_embeds.reshape(num_classes, -1, text_embeds.shape[1]).mean(axis=1, dtype=np.float64)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    return np.asarray(means / np.maximum(norms, 1e-12), dtype=np.float32)


def zero_shot(
    image_embeds: NDArray[np.float32],
    class_embeds: NDArray[np.float32],
    labels: Sequence[int],
    clusters: Sequence[str],
) -> Direction:
    """Ranks of the right class of each image; accuracy is recall@1.

    Args:
        image_embeds: (num_images, width), L2-normalised.
        class_embeds: (num_classes, width), L2-normalised.
        labels: (num_images,) index of the right class.
        clusters: (num_images,) the concept of each image.
    """
    correct = [np.array([label], dtype=np.int64) for label in labels]
    return best_ranks(image_embeds, class_embeds, correct, clusters)


def predictions(image_embeds: NDArray[np.float32], class_embeds: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns (num_images,) the index of the nearest class, the lowest index in a tie."""
    nearest: NDArray[np.int64] = np.argmax(image_embeds @ class_embeds.T, axis=1).astype(np.int64)
    return nearest


def majority_rate(labels: Sequence[int]) -> float:
    """Accuracy of always answering with the most frequent class. Raises ValueError if there is no label."""
    if not labels:
        raise ValueError("the majority rate of no labels is undefined")
    return max(Counter(labels).values()) / len(labels)


def confusion(labels: Sequence[int], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Returns (num_classes, num_classes) counts: row = true class, column = predicted class."""
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (np.asarray(labels, dtype=np.int64), predicted), 1)
    return counts


def classification_scores(
    ranked: Direction, labels: Sequence[int], *, num_resamples: int, seed: int
) -> dict[str, Score]:
    """`top1`, `top5` (with five classes or more) and `mean_per_class`, the mean of the accuracies of the classes.

    Args:
        ranked: as `zero_shot` gives it.
        labels: (num_images,) the right classes. A class without an image has no accuracy and is left out.

    Raises:
        DataError: there is no image, or labels and ranks differ in number.
    """
    if len(labels) != len(ranked.ranks):
        raise DataError(f"{len(labels)} labels for {len(ranked.ranks)} images")
    tops = [k for k in TOP if k <= max(ranked.num_items, 1)]
    figures = {f"top{k}": recall_figure([ranked], [k]) for k in tops}
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
        for part in np.array_split(block, 1 + block.shape[0] * len(order) // _NUMBERS_AT_ONCE):
            times = part[:, of_cluster]
            number = np.add.reduceat(times, starts, axis=1)
            right = np.add.reduceat(times * hits[order], starts, axis=1)
            accuracy = np.divide(right, number, out=np.zeros_like(right), where=number > 0)
            means.append(accuracy.sum(axis=1) / np.count_nonzero(number, axis=1))
    chance = 1 / ranked.num_items
    return Score(mean, *bounds(mean, len(index), np.concatenate(means)), chance)
