"""Measures one evaluation set: embeds it once, then computes every metric that its kind allows.

A retrieval set gives recall@1/5/10 and their mean, in both directions. A classification set gives zero-shot accuracy
with prompt ensembling, and nearest-neighbour accuracy if it has reference images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate.protocols.knn import nearest_neighbour
from align.evaluate.protocols.recall import Direction, Gallery, Score, gallery, mean_recall, ranks_by_embedding, recall
from align.evaluate.protocols.zero_shot import (
    class_embeddings,
    confusion,
    majority_rate,
    predictions,
    prompts,
    zero_shot,
)
from align.formats.evaluation_set import EvaluationImage, EvaluationSet
from align.formats.query_ranks import CUTS, IMAGE_TO_TEXT, KNN, TEXT_TO_IMAGE, ZERO_SHOT, Ranked
from align.model.embedder import Embeddings, Encoder

T = TypeVar("T")


@dataclass(frozen=True)
class Retrieval:
    """A measured retrieval set. `scores` maps names such as `image_to_text/recall@1` to scores."""

    source: EvaluationSet
    items: Gallery
    image_embeds: Embeddings
    text_embeds: Embeddings
    image_to_text: Direction
    text_to_image: Direction
    scores: dict[str, Score]

    def ranked(self) -> dict[str, Ranked]:
        """Protocol -> the rank of each query, for `ranks.parquet`."""
        keys = [image.key for image in self.source.images]
        return {
            IMAGE_TO_TEXT: _ranked(self.image_to_text, _asked(keys, self.items.texts_of_image), None),
            TEXT_TO_IMAGE: _ranked(self.text_to_image, [_text_id(text) for text in self.items.texts], None),
        }


@dataclass(frozen=True)
class Classification:
    """A measured classification set.

    Attributes:
        queries: the images that were classified.
        labels: (num_queries,) index of the true class.
        predicted: (num_queries,) index of the zero-shot class.
        confusion: (num_classes, num_classes) counts, row = true class.
        majority: accuracy of always answering with the most frequent class.
        scores: `zero_shot/accuracy`, and `knn/accuracy` if the set has reference images.
        directions: protocol -> ranks, of the protocols that have a score.
    """

    source: EvaluationSet
    queries: list[EvaluationImage]
    labels: list[int]
    predicted: NDArray[np.int64]
    confusion: NDArray[np.int64]
    majority: float
    scores: dict[str, Score]
    directions: dict[str, Direction]

    def ranked(self) -> dict[str, Ranked]:
        """Protocol -> the rank of each query, for `ranks.parquet`."""
        keys, labels = [image.key for image in self.queries], tuple(str(image.label) for image in self.queries)
        return {name: _ranked(direction, keys, labels) for name, direction in self.directions.items()}


def measure_retrieval(source: EvaluationSet, encoder: Encoder, *, num_resamples: int, seed: int) -> Retrieval:
    """Measures recall in both directions over all images of the set.

    Raises:
        DataError: the set has no image or no text, or the embeddings are not finite.
    """
    items = gallery((image.concept, image.texts) for image in source.images)
    if not source.images or not items.texts:
        raise DataError(f"evaluation set {source.name}: no image or no text in it")
    image_embeds = _finite(encoder.embed_images([image.image for image in source.images]), source.name)
    text_embeds = _finite(encoder.embed_texts(items.texts), source.name)
    image_to_text = _direction(image_embeds, text_embeds, items.texts_of_image, items.image_concepts)
    text_to_image = _direction(text_embeds, image_embeds, items.images_of_text, items.text_concepts)

    scores: dict[str, Score] = {}
    for name, direction in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        for k in CUTS:
            scores[f"{name}/recall@{k}"] = recall(direction, k, num_resamples=num_resamples, seed=seed)
        scores[f"{name}/mean_recall"] = mean_recall([direction], num_resamples=num_resamples, seed=seed)
    scores["mean_recall"] = mean_recall([image_to_text, text_to_image], num_resamples=num_resamples, seed=seed)
    return Retrieval(source, items, image_embeds, text_embeds, image_to_text, text_to_image, scores)


def measure_classification(source: EvaluationSet, encoder: Encoder, *, num_resamples: int, seed: int) -> Classification:
    """Measures zero-shot and nearest-neighbour accuracy over the set's query images.

    Raises:
        DataError: the set has no query image, or the embeddings are not finite.
    """
    index = {name: position for position, name in enumerate(source.classes)}
    queries = [image for image in source.images if image.split == "query"]
    references = [image for image in source.images if image.split == "reference"]
    if not queries:
        raise DataError(f"evaluation set {source.name}: no image of split 'query' in it")
    labels = [index[str(image.label)] for image in queries]
    clusters = [image.concept for image in queries]
    image_embeds = _finite(encoder.embed_images([image.image for image in queries]), source.name)
    text_embeds = _finite(encoder.embed_texts(prompts(source.classes, source.templates)), source.name)
    class_embeds = class_embeddings(text_embeds, len(source.classes))

    directions = {ZERO_SHOT: zero_shot(image_embeds, class_embeds, labels, clusters)}
    if references:
        reference_embeds = _finite(encoder.embed_images([image.image for image in references]), source.name)
        known = [index[str(image.label)] for image in references]
        directions[KNN] = nearest_neighbour(image_embeds, labels, reference_embeds, known, clusters)
    scores = {
        f"{name}/accuracy": recall(direction, 1, num_resamples=num_resamples, seed=seed)
        for name, direction in directions.items()
    }
    predicted = predictions(image_embeds, class_embeds)
    counts = confusion(labels, predicted, len(source.classes))
    return Classification(source, queries, labels, predicted, counts, majority_rate(labels), scores, directions)


def _direction(
    queries: Embeddings, items: Embeddings, correct: list[NDArray[np.int64]], concepts: list[str]
) -> Direction:
    """Ranks of the queries that have a correct item; an image without a text is not asked."""
    asked = _asked(range(len(correct)), correct)
    return Direction(
        ranks=ranks_by_embedding(queries[asked], items, _asked(correct, correct)),
        num_correct=[len(right) for right in _asked(correct, correct)],
        num_items=len(items),
        clusters=_asked(concepts, correct),
    )


def _asked(values: Sequence[T], correct: Sequence[NDArray[np.int64]]) -> list[T]:
    """The values of those queries that have a correct item."""
    return [value for value, right in zip(values, correct, strict=True) if len(right)]


def _ranked(direction: Direction, queries: Sequence[str], labels: tuple[str, ...] | None) -> Ranked:
    return Ranked(
        queries=tuple(queries),
        clusters=tuple(map(str, direction.clusters)),
        labels=labels,
        ranks=direction.ranks,
        num_correct=np.asarray(direction.num_correct, dtype=np.int64),
        num_items=direction.num_items,
    )


def _text_id(text: str) -> str:
    """Names a text of a gallery, in which texts differ by more than case and white space."""
    return f"text-{hashlib.sha256(' '.join(text.split()).casefold().encode()).hexdigest()[:16]}"


def _finite(embeds: Embeddings, name: str) -> Embeddings:
    if not np.isfinite(embeds).all():
        raise DataError(f"evaluation set {name}: the embeddings are not finite; train the model again")
    return embeds
