"""COCO 1K: retrieval within each of five folds of the test split, and the mean of the five.

The 25,000 captions are cut into five runs of consecutive ones, with the images that they were written for. A fold's
queries see the items of their fold only. The older papers report this besides the whole split (Karpathy and Fei-Fei,
2015; `coco_1k_recalls` of eccv_caption).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.errors import DataError
from align.evaluate.protocols.recall import Score, recall_figure, scores
from align.evaluate.protocols.retrieval import Captioned, Indices
from align.formats.query_ranks import CUTS

NUM_FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """A part of a set.

    Attributes:
        images, texts: their indices in the set.
        image_of_text: (num_texts,) index within `images`.
    """

    images: Indices
    texts: Indices
    image_of_text: Indices


def text_folds(image_of_text: Sequence[int], num_folds: int = NUM_FOLDS) -> list[Fold]:
    """Cuts a set into runs of consecutive texts of equal number; a rest that fills no fold is left out.

    Raises:
        DataError: there are fewer texts than folds.
    """
    images = np.asarray(image_of_text, dtype=np.int64)
    size = len(images) // num_folds
    if not size:
        raise DataError(f"{len(images)} texts do not make {num_folds} folds")
    folds = []
    for start in range(0, size * num_folds, size):
        texts = np.arange(start, start + size)
        own, within = np.unique(images[texts], return_inverse=True)
        folds.append(Fold(own, texts, within))
    return folds


def recall_in_folds(of: Captioned, *, num_folds: int = NUM_FOLDS, num_resamples: int, seed: int) -> dict[str, Score]:
    """`image_to_text/recall@1` and so on: the unweighted mean over the folds. The interval resamples images.

    Raises:
        DataError: as `text_folds` and `positive_ranks`.
    """
    parts = [
        Captioned(
            of.images[fold.images],
            of.texts[fold.texts],
            fold.image_of_text.tolist(),
            [of.clusters[image] for image in fold.images],
        ).directions()
        for fold in text_folds(of.image_of_text, num_folds)
    ]
    figures = {
        f"{name}/recall@{k}": recall_figure([part[name] for part in parts], [k])
        for name in ("image_to_text", "text_to_image")
        for k in CUTS
    }
    return scores(figures, num_resamples=num_resamples, seed=seed)
