"""Whether zero-shot probabilities are what they say: reliability, and the expected calibration error.

The probability of a class is the softmax of the similarities divided by the model's learned temperature, as in the
loss. A model is calibrated if, of the answers that it gives with probability p, a share of p is right. The error is the
mean distance of both, over 15 bins of equal width, weighted by their answers (Guo et al., ICML 2017, section 2). The
paper states no such figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
#: Images whose similarities are in memory at once.
_BLOCK = 1024


@dataclass(frozen=True)
class Calibration:
    """Answers by their probability.

    Attributes:
        error: the expected calibration error, in [0, 1].
        confidence: the mean probability of the answers.
        accuracy: the share of right ones.
        bins: lower end of each bin with an answer -> number of answers, their mean probability, share of right ones.
    """

    error: float
    confidence: float
    accuracy: float
    bins: dict[float, tuple[int, float, float]]


def confidences(
    image_embeds: NDArray[np.float32], class_embeds: NDArray[np.float32], temperature: float
) -> NDArray[np.float64]:
    """(num_images,) the probability of the most probable class.

    Args:
        image_embeds: (num_images, width), L2-normalised.
        class_embeds: (num_classes, width), L2-normalised.
        temperature: of the model; greater than 0.
    """
    found = [np.zeros(0)]
    for start in range(0, len(image_embeds), _BLOCK):
        logits = (image_embeds[start : start + _BLOCK] @ class_embeds.T).astype(np.float64) / temperature
        found.append(1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
    return np.concatenate(found)


def calibration(probabilities: NDArray[np.float64], right: Sequence[bool] | NDArray[np.bool_]) -> Calibration:
    """Bins the answers. Raises ValueError if there is none, or the two differ in length.

    Args:
        probabilities: (num_answers,) in (0, 1].
        right: (num_answers,) whether each answer is right.
    """
    hits = np.asarray(right, dtype=np.float64)
    if len(hits) == 0 or len(hits) != len(probabilities):
        raise ValueError(f"{len(probabilities)} probabilities of {len(hits)} answers")
    # a bin has its upper end, as published: 1.0 is in the last one
    places = np.clip(np.ceil(probabilities * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    bins: dict[float, tuple[int, float, float]] = {}
    error = 0.0
    for place in np.unique(places):
        of = places == place
        confidence, accuracy = float(probabilities[of].mean()), float(hits[of].mean())
        bins[int(place) / NUM_BINS] = (int(of.sum()), confidence, accuracy)
        error += float(of.mean()) * abs(accuracy - confidence)
    return Calibration(error, float(probabilities.mean()), float(hits.mean()), bins)
