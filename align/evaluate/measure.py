"""Measures one evaluation set: embeds it once, then computes every metric that its kind allows.

A retrieval set gives recall@1/5/10 and their mean, in both directions, as published, and beside it recall_any_owner@K
(see `align.evaluate.galleries`). A classification set gives zero-shot accuracy with prompt ensembling, and
nearest-neighbour accuracy if it has reference images.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.evaluate import galleries
from align.evaluate.embed import Towers, embed_pictures, finite
from align.evaluate.protocols.knn import nearest_neighbour
from align.evaluate.protocols.recall import Direction, Gallery, Score, mean_recall, ranks_by_embedding, recall
from align.evaluate.protocols.zero_shot import (
    class_embeddings,
    confusion,
    majority_rate,
    predictions,
    prompts,
    zero_shot,
)
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, folded
from align.formats.query_ranks import ANY_OWNER, CUTS, IMAGE_TO_TEXT, KNN, TEXT_TO_IMAGE, ZERO_SHOT, Ranked
from align.model.embedder import Embeddings

T = TypeVar("T")


@dataclass(frozen=True)
class Retrieval:
    """A measured retrieval set.

    Attributes:
        source: the set, without the pictures that were left out.
        items: its texts, and which are right as published.
        any_owner: the same where equal texts are one item.
        image_embeds, text_embeds: of the images and of `items.texts`.
        image_to_text, text_to_image: the ranks as published.
        kinder: the ranks by any owner, under the names of the directions.
        scores: such as `image_to_text/recall@1`.
        faults: key -> why a picture was left out.
    """

    source: EvaluationSet
    items: Gallery
    any_owner: Gallery
    image_embeds: Embeddings
    text_embeds: Embeddings
    image_to_text: Direction
    text_to_image: Direction
    kinder: dict[str, Direction]
    scores: dict[str, Score]
    faults: dict[str, str]

    def ranked(self) -> dict[str, Ranked]:
        """Protocol -> the rank of each query, for `ranks.parquet`."""
        keys = [image.key for image in self.source.images]
        found: dict[str, Ranked] = {}
        for ending, items, image_to_text, text_to_image in (
            ("", self.items, self.image_to_text, self.text_to_image),
            (ANY_OWNER, self.any_owner, self.kinder[IMAGE_TO_TEXT], self.kinder[TEXT_TO_IMAGE]),
        ):
            texts = _text_ids(items, with_owner=not ending)
            found[IMAGE_TO_TEXT + ending] = _ranked(image_to_text, _asked(keys, items.texts_of_image), None)
            found[TEXT_TO_IMAGE + ending] = _ranked(text_to_image, _asked(texts, items.images_of_text), None)
        return found


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


def measure_retrieval(
    whole: EvaluationSet, towers: Towers, *, num_resamples: int, seed: int, kept: Path | None = None
) -> Retrieval:
    """Measures recall in both directions over all images of the set.

    Raises:
        DataError: the set has no image or no text, none of its pictures can be shown to the model, or the embeddings
            are not finite.
    """
    if not any(image.texts for image in whole.images):
        raise DataError(f"evaluation set {whole.name}: no image or no text in it")
    positions, image_embeds, faults = embed_pictures(whole, towers, kept)
    items, merged = galleries.published(whole, positions), galleries.any_owner(whole, positions)
    if not any(len(right) for right in items.texts_of_image):
        raise DataError(f"evaluation set {whole.name}: no text belongs to a picture that can be shown to the model")
    distinct = {text: row for row, text in enumerate(dict.fromkeys([*items.texts, *merged.texts]))}
    of_text = finite(towers.embed_texts(distinct), whole.name)
    text_embeds = of_text[[distinct[text] for text in items.texts]]
    image_to_text, text_to_image = _both_ways(items, image_embeds, text_embeds)
    of_merged = _both_ways(merged, image_embeds, of_text[[distinct[text] for text in merged.texts]])
    kinder = dict(zip((IMAGE_TO_TEXT, TEXT_TO_IMAGE), of_merged, strict=True))

    scores: dict[str, Score] = {}
    for name, direction in ((IMAGE_TO_TEXT, image_to_text), (TEXT_TO_IMAGE, text_to_image)):
        for k in CUTS:
            scores[f"{name}/recall@{k}"] = recall(direction, k, num_resamples=num_resamples, seed=seed)
        for k in CUTS:
            scores[f"{name}/recall_any_owner@{k}"] = recall(kinder[name], k, num_resamples=num_resamples, seed=seed)
        scores[f"{name}/mean_recall"] = mean_recall([direction], num_resamples=num_resamples, seed=seed)
    scores["mean_recall"] = mean_recall([image_to_text, text_to_image], num_resamples=num_resamples, seed=seed)
    return Retrieval(
        source=whole.select(positions),
        items=items,
        any_owner=merged,
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        image_to_text=image_to_text,
        text_to_image=text_to_image,
        kinder=kinder,
        scores=scores,
        faults=_named(faults, whole),
    )


def measure_classification(
    whole: EvaluationSet, towers: Towers, *, num_resamples: int, seed: int, kept: Path | None = None
) -> Classification:
    """Measures zero-shot and nearest-neighbour accuracy over the set's query images.

    Raises:
        DataError: the set has no query image, none can be shown to the model, or the embeddings are not finite.
    """
    index = {name: position for position, name in enumerate(whole.classes)}
    if not any(image.split == "query" for image in whole.images):
        raise DataError(f"evaluation set {whole.name}: no image of split 'query' in it")
    positions, embeds, faults = embed_pictures(whole, towers, kept)
    source = whole.select(positions)
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
    return Classification(
        source=source,
        queries=queries,
        labels=labels,
        predicted=predicted,
        confusion=counts,
        majority=majority_rate(labels),
        scores=scores,
        directions=directions,
        faults=_named(faults, whole),
    )


def _named(faults: dict[int, str], whole: EvaluationSet) -> dict[str, str]:
    """Key -> why, of all that the set has and that is not measured."""
    return {**whole.unusable, **{whole.images[position].key: why for position, why in faults.items()}}


def _both_ways(items: Gallery, image_embeds: Embeddings, text_embeds: Embeddings) -> tuple[Direction, Direction]:
    return (
        _direction(image_embeds, text_embeds, items.texts_of_image, items.image_concepts),
        _direction(text_embeds, image_embeds, items.images_of_text, items.text_concepts),
    )


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


def _text_ids(items: Gallery, *, with_owner: bool) -> list[str]:
    """Names the texts of a gallery; with the owner, where texts may be equal. The second of equal ones has a number."""
    numbers: Counter[str] = Counter()
    found = []
    for text, owner in zip(items.texts, items.text_concepts, strict=True):
        said = f"{owner}\0{folded(text)}" if with_owner else folded(text)
        numbers[said] += 1
        said += f"\0{numbers[said]}" if numbers[said] > 1 else ""
        found.append(f"text-{hashlib.sha256(said.encode()).hexdigest()[:16]}")
    return found
