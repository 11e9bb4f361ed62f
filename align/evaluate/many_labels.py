"""Measures a set whose pictures have any number of classes, such as VOC2007: zero-shot, by mean average precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from align.evaluate.embed import Towers, embed_pictures, finite
from align.evaluate.protocols.average_precision import average_precisions, mean_average_precision
from align.evaluate.protocols.recall import Score
from align.evaluate.protocols.zero_shot import class_embeddings, prompts
from align.formats.evaluation_set import EvaluationSet


@dataclass(frozen=True)
class Answered:
    """A measured set that has no ranks.

    Attributes:
        source: the set, without the pictures that were left out.
        scores: such as `zero_shot/mean_average_precision`.
        num_texts: that the pictures were compared with.
        groups: class -> `num_rows`, its pictures, and its figure.
        faults: key -> why a picture was left out.
    """

    source: EvaluationSet
    scores: dict[str, Score]
    num_texts: int
    groups: dict[str, dict[str, float]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)


def measure_many_labels(
    whole: EvaluationSet, towers: Towers, *, num_resamples: int, seed: int, kept: Path | None = None
) -> Answered:
    """`zero_shot/mean_average_precision`, and the average precision of each class.

    Raises:
        DataError: no picture can be shown to the model, or the embeddings are not finite.
    """
    positions, embeds, faults = embed_pictures(whole, towers, kept)
    source = whole.select(positions)
    text_embeds = finite(towers.embed_texts(prompts(source.classes, source.templates)), source.name)
    similarity = embeds @ class_embeddings(text_embeds, len(source.classes)).T
    has = np.array([[name in image.texts for name in source.classes] for image in source.images], dtype=bool)
    clusters = [image.concept for image in source.images]
    score = mean_average_precision(similarity, has, clusters, num_resamples=num_resamples, seed=seed)
    groups = {
        name: {"num_rows": int(number), "average_precision": round(float(value), 6)}
        for name, number, value in zip(
            source.classes, has.sum(axis=0), average_precisions(similarity, has), strict=True
        )
    }
    named = {whole.images[position].key: why for position, why in faults.items()}
    scores = {"zero_shot/mean_average_precision": score}
    return Answered(source, scores, len(source.classes), groups, {**whole.unusable, **named})
