"""Multi30K: the mean of recall@1, @5 and @10 over both directions, for each language (paper section 8).

English and German have five captions an image, French and Czech one. A language is a set of its own: the same images
with its captions. The interval resamples images: an image and its captions are drawn in both directions together.
"""

from __future__ import annotations

from collections.abc import Mapping

from align.evaluate.protocols.recall import Direction, Score, recall_figure, scores
from align.formats.query_ranks import CUTS


def multi30k(directions: Mapping[str, Direction], *, num_resamples: int, seed: int) -> dict[str, Score]:
    """One language: `mean_recall`, and the six recalls that it is the mean of, such as `text_to_image/recall@5`.

    Args:
        directions: both, of the images and the captions in this language.
        num_resamples, seed: of the intervals.
    """
    figures = {f"{name}/recall@{k}": recall_figure([one], [k]) for name, one in directions.items() for k in CUTS}
    figures["mean_recall"] = recall_figure(list(directions.values()))
    return scores(figures, num_resamples=num_resamples, seed=seed)
