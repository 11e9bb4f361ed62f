"""Multi30K: the mean of recall@1, @5 and @10 over both directions, for each language (paper section 8).

English and German have five captions an image, French and Czech one. A language is a set of its own: the same images
with its captions. The interval resamples images: an image and its captions are drawn in both directions together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from align.evaluate.protocols.recall import Score
from align.evaluate.protocols.retrieval import Ties, both_ways, own_positives
from align.evaluate.protocols.scoring import Figure, scores
from align.formats.query_ranks import CUTS
from align.intervals import Scored


def multi30k(
    image_embeds: NDArray[np.floating],
    text_embeds: NDArray[np.floating],
    image_of_text: Sequence[int],
    clusters: Sequence[Hashable],
    *,
    num_resamples: int,
    seed: int,
    ties: Ties = "against",
) -> dict[str, Score]:
    """One language: `mean_recall`, and the six recalls that it is the mean of, such as `text_to_image/recall@5`.

    Args:
        image_embeds: (num_images, width), L2-normalised.
        text_embeds: (num_texts, width), L2-normalised; the captions in this language.
        image_of_text: (num_texts,) index of each caption's image.
        clusters: (num_images,) the independent unit of each image, most often its index.

    Raises:
        DataError: as `positive_ranks`.
    """
    found = both_ways(image_embeds, text_embeds, own_positives(image_of_text, len(image_embeds)), ties=ties)
    directions = {
        "image_to_text": found["image_to_text"].direction(clusters),
        "text_to_image": found["text_to_image"].direction([clusters[image] for image in image_of_text]),
    }
    groups: list[Scored] = []
    chances: list[float] = []
    figures: dict[str, Figure] = {}
    for name, direction in directions.items():
        hits = [direction.hits(k) for k in CUTS]
        chance = [direction.chance(k) for k in CUTS]
        figures |= {f"{name}/recall@{k}": Figure([one], by) for k, one, by in zip(CUTS, hits, chance, strict=True)}
        groups.append(Scored(np.mean([one.values for one in hits], axis=0), direction.clusters))
        chances += chance
    figures["mean_recall"] = Figure(groups, float(np.mean(chances)))
    return scores(figures, num_resamples=num_resamples, seed=seed)
