"""Multi30K: the mean of recall@1, @5 and @10 over both directions, for each language (paper section 8).

English and German have five captions an image, French and Czech one. A language is a set of its own: the same images
with its captions. The interval resamples images: an image and its captions are drawn in both directions together.
"""

from __future__ import annotations

import numpy as np

from align.evaluate.protocols.recall import Figure, Score, scores
from align.evaluate.protocols.retrieval import Captioned, Ties
from align.formats.query_ranks import CUTS
from align.statistics.intervals import Scored


def multi30k(of: Captioned, *, num_resamples: int, seed: int, ties: Ties = "against") -> dict[str, Score]:
    """One language: `mean_recall`, and the six recalls that it is the mean of, such as `text_to_image/recall@5`.

    Args:
        of: the images, and the captions in this language.
        num_resamples, seed: of the intervals.
        ties: see `positive_ranks`.

    Raises:
        DataError: as `positive_ranks`.
    """
    directions = of.directions(ties)
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
