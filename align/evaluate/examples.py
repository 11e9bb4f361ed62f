"""Examples for people, drawn by seed: queries of a set with their nearest items, and pictures with their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from align.evaluate.measure import Classification, Retrieval

#: Answers that an example shows.
NUM_ANSWERS = 5
DIRECTIONS = {"image_to_text": "image → text", "text_to_image": "text → image"}


@dataclass(frozen=True)
class RetrievalExample:
    """A query with its nearest items. Images are encoded bytes, texts are strings.

    Attributes:
        query: the image or text.
        answers: the nearest items, best first, each with whether it is correct.
        rank: rank of the best correct item, from 1.
        correct: one correct text (image queries) or one correct image (text queries).
    """

    query: bytes | str
    answers: list[tuple[bytes | str, bool]]
    rank: int
    correct: bytes | str


@dataclass(frozen=True)
class RetrievalExamples:
    """Examples of one direction: the best correct item has rank 1 in `right`, and a rank beyond 5 in `wrong`."""

    right: list[RetrievalExample]
    wrong: list[RetrievalExample]


def draw_examples(result: Retrieval, direction: str, *, number: int, seed: int) -> RetrievalExamples:
    """Draws at most `number` right and `number` wrong answers, at most one per concept; equal seeds draw equally."""
    right: list[int] = []
    wrong: list[int] = []
    seen: set[str] = set()
    asked = _Asked(result, direction)
    for query in asked.shuffled(seed):
        rank = asked.ranks[query]
        group = right if rank == 1 else wrong
        if asked.concepts[query] in seen or len(group) == number or 1 < rank <= NUM_ANSWERS:
            continue
        seen.add(asked.concepts[query])
        group.append(query)
    examples = asked.examples([*right, *wrong])
    return RetrievalExamples(right=examples[: len(right)], wrong=examples[len(right) :])


def same_examples(result: Retrieval, direction: str, *, number: int, seed: int) -> list[RetrievalExample]:
    """The answers to at most `number` queries, of different concepts, that do not depend on the model.

    The same set and seed give the same queries, so that the pictures of two models stand side by side.
    """
    drawn: list[int] = []
    seen: set[str] = set()
    asked = _Asked(result, direction)
    for query in asked.shuffled(seed):
        if len(drawn) < number and asked.concepts[query] not in seen:
            seen.add(asked.concepts[query])
            drawn.append(query)
    return asked.examples(drawn)


@dataclass(frozen=True)
class ClassifiedExample:
    """A picture with the class that zero-shot classification gave it."""

    picture: bytes
    label: str
    predicted: str


def draw_classified(
    result: Classification, *, number: int, seed: int
) -> tuple[list[ClassifiedExample], list[ClassifiedExample]]:
    """At most `number` pictures that were classified right, and as many wrong ones; equal seeds draw equally.

    Every class shows one before a class shows a second.
    """
    names = result.source.classes
    places = [place for place, image in enumerate(result.source.images) if image.split == "query"]
    drawn: list[list[int]] = []
    order = [int(query) for query in np.random.default_rng(seed).permutation(len(places))]
    for right in (True, False):
        of_class: dict[int, int] = {}
        turns = []
        for query in order:
            label = result.labels[query]
            if (int(result.predicted[query]) == label) == right:
                of_class[label] = of_class.get(label, 0) + 1
                turns.append((of_class[label], query))
        drawn.append([query for _, query in sorted(turns, key=lambda turn: turn[0])[:number]])
    pictures = dict(result.source.read(sorted(places[query] for queries in drawn for query in queries)))
    right_ones, wrong_ones = (
        [
            ClassifiedExample(
                picture=pictures[places[query]],
                label=names[result.labels[query]],
                predicted=names[int(result.predicted[query])],
            )
            for query in queries
        ]
        for queries in drawn
    )
    return right_ones, wrong_ones


class _Asked:
    """The queries of one direction that have a correct item, and their answers.

    Attributes:
        ranks: query -> rank of its best correct item.
        concepts: query -> its concept.
    """

    def __init__(self, result: Retrieval, direction: str) -> None:
        to_text = direction == "image_to_text"
        self._source, self._texts, self._to_text = result.source, result.items.texts, to_text
        self._correct = result.items.texts_of_image if to_text else result.items.images_of_text
        embeds = result.image_embeds, result.text_embeds
        self._query_embeds, self._item_embeds = embeds if to_text else embeds[::-1]
        self.concepts = result.items.image_concepts if to_text else result.items.text_concepts
        asked = [query for query, right in enumerate(self._correct) if len(right)]
        ranks = result.directions[direction].ranks
        self.ranks = {query: int(rank) for query, rank in zip(asked, ranks, strict=True)}

    def shuffled(self, seed: int) -> Iterator[int]:
        asked = list(self.ranks)
        return (asked[position] for position in np.random.default_rng(seed).permutation(len(asked)))

    def examples(self, queries: Sequence[int]) -> list[RetrievalExample]:
        """Their answers; pictures are read in one pass, and only those that are shown."""
        nearest = {query: self._nearest(query) for query in queries}
        shown = set(queries) if self._to_text else {item for items in nearest.values() for item in items}
        if not self._to_text:
            shown |= {int(self._correct[query][0]) for query in queries}
        pictures = dict(self._source.read(sorted(shown)))
        of_query, of_item = (pictures, self._texts) if self._to_text else (self._texts, pictures)
        return [
            RetrievalExample(
                query=of_query[query],
                answers=[(of_item[item], item in self._correct[query]) for item in nearest[query]],
                rank=self.ranks[query],
                correct=of_item[int(self._correct[query][0])],
            )
            for query in queries
        ]

    def _nearest(self, query: int) -> list[int]:
        similarity = self._item_embeds @ self._query_embeds[query]
        return [int(item) for item in np.argsort(-similarity, kind="stable")[:NUM_ANSWERS]]
