"""Zero-shot classification: the class whose text is nearest to the image (paper section 4.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from align.evaluate.protocols.recall import Direction, ranks_by_embedding


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
    """Ranks of the right class of each image; accuracy is recall@1, and a tie for rank 1 counts as wrong.

    Args:
        image_embeds: (num_images, width), L2-normalised.
        class_embeds: (num_classes, width), L2-normalised.
        labels: (num_images,) index of the right class.
        clusters: (num_images,) the concept of each image.
    """
    correct = [np.array([label], dtype=np.int64) for label in labels]
    ranks = ranks_by_embedding(image_embeds, class_embeds, correct)
    return Direction(ranks, [1] * len(correct), len(class_embeds), clusters)


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
