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
from align.evaluate.embed import Towers, embed_pictures, finite
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
from align.model.embedder import Embeddings

T = TypeVar("T")


@dataclass(frozen=True)
class Retrieval:
    """A measured retrieval set.

    Attributes:
        source: the set, without the pictures that were left out.
        items: its texts, and which are right.
        image_embeds, text_embeds: of both.
        image_to_text, text_to_image: the ranks.
        scores: such as `image_to_text/recall@1`.
        faults: key -> why a picture was left out.
    """

    source: EvaluationSet
    items: Gallery
    image_embeds: Embeddings
    text_embeds: Embeddings
    image_to_text: Direction
    text_to_image: Direction
    scores: dict[str, Score]
    faults: dict[str, str]

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
        source: the set, without the pictures that were left out.
        queries: the images that were classified.
        labels: (num_queries,) index of the true class.
        predicted: (num_queries,) index of the zero-shot class.
        confusion: (num_classes, num_classes) counts, row = true class.
        majority: accuracy of always answering with the most frequent class.
        scores: `zero_shot/accuracy`, and `knn/accuracy` if the set has reference images.
        directions: protocol -> ranks, of the protocols that have a score.
        faults: key -> why a picture was left out.
    """

    source: EvaluationSet
    queries: list[EvaluationImage]
    labels: list[int]
    predicted: NDArray[np.int64]
    confusion: NDArray[np.int64]
    majority: float
    scores: dict[str, Score]
    directions: dict[str, Direction]
    faults: dict[str, str]

    def ranked(self) -> dict[str, Ranked]:
        """Protocol -> the rank of each query, for `ranks.parquet`."""
        keys, labels = [image.key for image in self.queries], tuple(str(image.label) for image in self.queries)
        return {name: _ranked(direction, keys, labels) for name, direction in self.directions.items()}


def measure_retrieval(whole: EvaluationSet, towers: Towers, *, num_resamples: int, seed: int) -> Retrieval:
    """Measures recall in both directions over all images of the set.

    Raises:
        DataError: the set has no image or no text, none of its pictures can be shown to the model, or the embeddings
            are not finite.
    """
    if not any(image.texts for image in whole.images):
        raise DataError(f"evaluation set {whole.name}: no image or no text in it")
    source, image_embeds, faults = _embedded(whole, towers)
    items = gallery((image.concept, image.texts) for image in source.images)
    if not items.texts:
        raise DataError(f"evaluation set {source.name}: no text belongs to a picture that can be shown to the model")
    text_embeds = finite(towers.embed_texts(items.texts), source.name)
    image_to_text = _direction(image_embeds, text_embeds, items.texts_of_image, items.image_concepts)
    text_to_image = _direction(text_embeds, image_embeds, items.images_of_text, items.text_concepts)

    scores: dict[str, Score] = {}
    for name, direction in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        for k in CUTS:
            scores[f"{name}/recall@{k}"] = recall(direction, k, num_resamples=num_resamples, seed=seed)
        scores[f"{name}/mean_recall"] = mean_recall([direction], num_resamples=num_resamples, seed=seed)
    scores["mean_recall"] = mean_recall([image_to_text, text_to_image], num_resamples=num_resamples, seed=seed)
    return Retrieval(source, items, image_embeds, text_embeds, image_to_text, text_to_image, scores, faults)


def measure_classification(whole: EvaluationSet, towers: Towers, *, num_resamples: int, seed: int) -> Classification:
    """Measures zero-shot and nearest-neighbour accuracy over the set's query images.

    Raises:
        DataError: the set has no query image, none can be shown to the model, or the embeddings are not finite.
    """
    index = {name: position for position, name in enumerate(whole.classes)}
    if not any(image.split == "query" for image in whole.images):
        raise DataError(f"evaluation set {whole.name}: no image of split 'query' in it")
    source, embeds, faults = _embedded(whole, towers)
    asked = [position for position, image in enumerate(source.images) if image.split == "query"]
    known = [position for position, image in enumerate(source.images) if image.split == "reference"]
    if not asked:
        raise DataError(f"evaluation set {source.name}: no image of split 'query' can be shown to the model")
    queries = [source.images[position] for position in asked]
    labels = [index[str(image.label)] for image in queries]
    clusters = [image.concept for image in queries]
    image_embeds = embeds[asked]
    text_embeds = finite(towers.embed_texts(prompts(source.classes, source.templates)), source.name)
    class_embeds = class_embeddings(text_embeds, len(source.classes))

    directions = {ZERO_SHOT: zero_shot(image_embeds, class_embeds, labels, clusters)}
    if known:
        of_known = [index[str(source.images[position].label)] for position in known]
        directions[KNN] = nearest_neighbour(image_embeds, labels, embeds[known], of_known, clusters)
    scores = {
        f"{name}/accuracy": recall(direction, 1, num_resamples=num_resamples, seed=seed)
        for name, direction in directions.items()
    }
    predicted = predictions(image_embeds, class_embeds)
    counts = confusion(labels, predicted, len(source.classes))
    return Classification(source, queries, labels, predicted, counts, majority_rate(labels), scores, directions, faults)


def _embedded(whole: EvaluationSet, towers: Towers) -> tuple[EvaluationSet, Embeddings, dict[str, str]]:
    """The set without what cannot be shown to the model, its embeddings, and key -> why of what is left out."""
    positions, embeds, faults = embed_pictures(whole, towers)
    return whole.select(positions), embeds, {whole.images[position].key: why for position, why in faults.items()}


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
