"""Retrieval examples for people: queries of a set with their nearest items, drawn by seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from align.evaluate.measure import Retrieval

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
    image_query = direction == "image_to_text"
    images = [image.image for image in result.source.images]
    texts = result.items.texts
    correct = result.items.texts_of_image if image_query else result.items.images_of_text
    concepts = result.items.image_concepts if image_query else result.items.text_concepts
    queries, items = (
        (result.image_embeds, result.text_embeds) if image_query else (result.text_embeds, result.image_embeds)
    )
    asked = [index for index, right in enumerate(correct) if len(right)]
    ranks = dict(zip(asked, (result.image_to_text if image_query else result.text_to_image).ranks, strict=True))

    drawn = RetrievalExamples(right=[], wrong=[])
    seen: set[str] = set()
    for query in (asked[position] for position in np.random.default_rng(seed).permutation(len(asked))):
        rank = int(ranks[query])
        group = drawn.right if rank == 1 else drawn.wrong
        if concepts[query] in seen or len(group) == number or 1 < rank <= NUM_ANSWERS:
            continue
        seen.add(concepts[query])
        nearest = np.argsort(-(items @ queries[query]), kind="stable")[:NUM_ANSWERS]
        answers = [(texts[i] if image_query else images[i], bool(i in correct[query])) for i in nearest]
        one_correct = texts[correct[query][0]] if image_query else images[correct[query][0]]
        group.append(RetrievalExample(images[query] if image_query else texts[query], answers, rank, one_correct))
    return drawn
