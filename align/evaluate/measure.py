"""Measures one evaluation set: embeds it once, then computes every metric that its kind allows.

A retrieval set gives recall@1/5/10 and their mean, in both directions, as published. What a suite asks in addition is
in `align.evaluate.captioned`. A classification set gives zero-shot accuracy with prompt ensembling, and accuracy by the
nearest neighbour if it has reference images.

Each text is an item of its own, and right for the images of its owner only, so that of two equal captions of different
pictures one is wrong. Tools that sort leave such ties to chance; here a query counts by the share of the orders of
equal items that answer it.
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
from align.evaluate.captioned import Shown, captioned_scores
from align.evaluate.embed import Towers, embed_pictures, finite
from align.evaluate.learned import frozen_answers, ranked
from align.evaluate.protocols.crisscrossed import Crisscrossed
from align.evaluate.protocols.knn import nearest_neighbour
from align.evaluate.protocols.labelled import Labelled, accuracy
from align.evaluate.protocols.recall import Direction, Gallery, Score, mean_recall, recall
from align.evaluate.protocols.retrieval import both_ways, retrieval_scores
from align.evaluate.protocols.zero_shot import (
    class_embeddings,
    classification_scores,
    confusion,
    majority_rate,
    predictions,
    prompts,
    zero_shot,
)
from align.evaluate.tuned import FineTuned, Task, fine_tuned
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, folded
from align.formats.query_ranks import IMAGE_TO_TEXT, KNN, TEXT_TO_IMAGE, ZERO_SHOT, Ranked
from align.model.embedder import Embeddings

T = TypeVar("T")


@dataclass(frozen=True)
class Retrieval:
    """A measured retrieval set.

    Attributes:
        source: the set, without the pictures that were left out.
        items: its texts, and which are right.
        image_embeds, text_embeds: of the images and of `items.texts`.
        directions: `image_to_text` and `text_to_image` -> the ranks.
        scores: such as `image_to_text/recall@1`.
        faults: key -> why a picture was left out.
    """

    source: EvaluationSet
    items: Gallery
    image_embeds: Embeddings
    text_embeds: Embeddings
    directions: dict[str, Direction]
    scores: dict[str, Score]
    faults: dict[str, str]

    def ranked(self) -> dict[str, Ranked]:
        """Protocol -> the rank of each query, for `ranks.parquet`."""
        keys, texts, items = [image.key for image in self.source.images], _text_ids(self.items), self.items
        return {
            IMAGE_TO_TEXT: _ranked(self.directions[IMAGE_TO_TEXT], _asked(keys, items.texts_of_image), None),
            TEXT_TO_IMAGE: _ranked(self.directions[TEXT_TO_IMAGE], _asked(texts, items.images_of_text), None),
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
        scores: `zero_shot/accuracy`, `/top5` and `/mean_per_class`, and `knn/accuracy` if the set has reference images;
            with `frozen/accuracy` and `fine_tuning/accuracy`, if a suite asks.
        directions: protocol -> ranks, of the protocols that have a score.
        faults: key -> why a picture was left out.
        tuned: what fine-tuning gave, if a suite asks for it.
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
    tuned: FineTuned | None = None

    def ranked(self) -> dict[str, Ranked]:
        """Protocol -> the rank of each query, for `ranks.parquet`."""
        keys, labels = [image.key for image in self.queries], tuple(str(image.label) for image in self.queries)
        return {name: _ranked(direction, keys, labels) for name, direction in self.directions.items()}


def measure_retrieval(
    whole: EvaluationSet,
    towers: Towers,
    *,
    num_resamples: int,
    seed: int,
    kept: Path | None = None,
    ratings: Crisscrossed | None = None,
) -> Retrieval:
    """Measures recall in both directions over all images of the set, and what its entry in a suite asks.

    Args:
        whole: the set.
        towers: the model.
        num_resamples, seed: of the intervals.
        kept: see `embed_pictures`.
        ratings: of its pictures and captions, for `cxc`.

    Raises:
        DataError: the set has no image or no text, none of its pictures can be shown to the model, or the embeddings
            are not finite.
    """
    if not any(image.texts for image in whole.images):
        raise DataError(f"evaluation set {whole.name}: no image or no text in it")
    positions, image_embeds, faults = embed_pictures(whole, towers, kept)
    items = published_gallery(whole, positions)
    if not any(len(right) for right in items.texts_of_image):
        raise DataError(f"evaluation set {whole.name}: no text belongs to a picture that can be shown to the model")
    distinct = {text: row for row, text in enumerate(dict.fromkeys(items.texts))}
    of_text = finite(towers.embed_texts(distinct), whole.name)
    text_embeds = of_text[[distinct[text] for text in items.texts]]
    right, units = (items.texts_of_image, items.images_of_text), (items.image_concepts, items.text_concepts)
    directions = both_ways(image_embeds, text_embeds, right, units)

    scores: dict[str, Score] = {}
    for name, direction in directions.items():
        part = retrieval_scores(direction, num_resamples=num_resamples, seed=seed)
        part["mean_recall"] = mean_recall([direction], num_resamples=num_resamples, seed=seed)
        scores |= {f"{name}/{figure}": score for figure, score in part.items()}
    scores["mean_recall"] = mean_recall(list(directions.values()), num_resamples=num_resamples, seed=seed)
    shown = Shown(whole, positions, items, image_embeds, text_embeds, directions)
    scores |= captioned_scores(shown, ratings, num_resamples=num_resamples, seed=seed)
    return Retrieval(
        source=whole.select(positions),
        items=items,
        image_embeds=image_embeds,
        text_embeds=text_embeds,
        directions=directions,
        scores=scores,
        faults=_named(faults, whole),
    )


def measure_classification(
    whole: EvaluationSet,
    towers: Towers,
    *,
    num_resamples: int,
    seed: int,
    kept: Path | None = None,
    model: Path | None = None,
) -> Classification:
    """Measures zero-shot and nearest-neighbour accuracy over the set's query images, and what a suite asks.

    Args:
        whole: the set.
        towers: the model.
        num_resamples, seed: of the intervals.
        kept: see `embed_pictures`.
        model: the folder of the model, for task `fine_tuning`.

    Raises:
        DataError: the set has no query image, none can be shown to the model, or the embeddings are not finite.
        AlignError: as `fine_tuned`.
        ValueError: the suite asks for `fine_tuning`, and there is no folder.
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
    image_embeds = _rows(embeds, asked)
    text_embeds = finite(towers.embed_texts(prompts(source.classes, source.templates)), source.name)
    class_embeds = class_embeddings(text_embeds, len(source.classes))

    directions = {ZERO_SHOT: zero_shot(image_embeds, class_embeds, labels, clusters)}
    if known:
        of_known = [index[str(source.images[position].label)] for position in known]
    if known and (whole.asked is None or KNN in whole.asked.tasks):
        directions[KNN] = nearest_neighbour(image_embeds, labels, _rows(embeds, known), of_known, clusters)
    scores = {
        f"{name}/accuracy": recall(direction, 1, num_resamples=num_resamples, seed=seed)
        for name, direction in directions.items()
    }
    more = classification_scores(directions[ZERO_SHOT], labels, num_resamples=num_resamples, seed=seed)
    scores |= {f"{ZERO_SHOT}/{name}": score for name, score in more.items() if name != "top1"}  # top1 is the accuracy
    if whole.asked is not None and whole.asked.learns:
        if not known:
            raise DataError(f"evaluation set {source.name}: no picture of split {whole.asked.reference} can be shown")
        content, name = [whole.digests[positions[row]] for row in known], f"{source.name}, {whole.asked.reference}"
        train = Labelled(name, _rows(embeds, known), np.asarray(of_known), content)
        test = Labelled(f"{source.name}, {whole.asked.split}", image_embeds, np.asarray(labels), clusters)
        num_classes = len(source.classes)
        if "frozen" in whole.asked.tasks:
            answers = [frozen_answers(whole.asked, train, test, num_classes)]
            scores["frozen/accuracy"] = accuracy(answers, test, num_classes, num_resamples=num_resamples, seed=seed)
            directions |= ranked("frozen", answers, test, num_classes)
    tuned = None
    if whole.asked is not None and "fine_tuning" in whole.asked.tasks:
        if model is None:
            raise ValueError(f"{source.name}: fine_tuning needs the model's folder")
        task = Task(source, known, asked, of_known, labels, clusters, directions.get(KNN))
        tuned = fine_tuned(whole.asked.fine_tuning, task, model, num_resamples=num_resamples, seed=seed)
        scores["fine_tuning/accuracy"] = tuned.score
        directions |= ranked("fine_tuning", tuned.runs, test, num_classes)
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
        tuned=tuned,
    )


def _rows(embeds: Embeddings, positions: Sequence[int]) -> Embeddings:
    """Some rows; without a copy where they lie together, as the splits of a set do."""
    first, last = positions[0], positions[-1]
    return embeds[first : last + 1] if last - first == len(positions) - 1 else embeds[list(positions)]


def _named(faults: dict[int, str], whole: EvaluationSet) -> dict[str, str]:
    """Key -> why, of all that the set has and that is not measured."""
    return {**whole.unusable, **{whole.images[position].key: why for position, why in faults.items()}}


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
        ties=direction.ties,
    )


def _text_ids(items: Gallery) -> list[str]:
    """Names the texts of a gallery with their owners. The second of equal ones has a number."""
    numbers: Counter[str] = Counter()
    found = []
    for text, owner in zip(items.texts, items.text_concepts, strict=True):
        said = f"{owner}\0{folded(text)}"
        numbers[said] += 1
        said += f"\0{numbers[said]}" if numbers[said] > 1 else ""
        found.append(f"text-{hashlib.sha256(said.encode()).hexdigest()[:16]}")
    return found


def published_gallery(source: EvaluationSet, shown: Sequence[int]) -> Gallery:
    """The gallery of the images that are shown, by increasing positions, and of the texts that belong to them."""
    concepts = [source.images[position].concept for position in shown]
    owned = set(concepts)
    kept = [item for item in source.texts if item.owner in owned]
    owners = [item.owner for item in kept]
    texts_of, images_of = _places(owners), _places(concepts)
    none = np.empty(0, dtype=np.int64)
    return Gallery(
        texts=[item.text for item in kept],
        image_concepts=concepts,
        text_concepts=owners,
        texts_of_image=[texts_of.get(concept, none) for concept in concepts],
        images_of_text=[images_of[owner] for owner in owners],
    )


def _places(names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Name -> where it stands."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return {name: np.array(places, dtype=np.int64) for name, places in found.items()}
