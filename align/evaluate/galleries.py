"""Which texts of a retrieval set are right for which images, in two ways.

As published: each text is an item of its own, and right for the images of its owner only, so that of two equal captions
of different pictures one is wrong. Metrics `recall@K`. Their ties count against the model, so an image whose caption is
repeated elsewhere is right at rank 1 by another of its captions only; tools that sort leave such ties to chance.

Any owner: equal texts are one item, right for all images of all its owners. Nobody could tell which of two equal texts
is meant. This is kinder: metrics `recall_any_owner@K`, which no published figure can be compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from align.errors import DataError
from align.evaluate.protocols.recall import Gallery, gallery
from align.formats.evaluation_set import EvaluationSet


def published(source: EvaluationSet, shown: Sequence[int]) -> Gallery:
    """The gallery of the images that are shown, by growing positions, and of the texts that belong to any of them.

    Raises:
        DataError: a positive names no image or no text.
    """
    place = {position: index for index, position in enumerate(shown)}
    concepts = [source.images[position].concept for position in shown]
    pairs = [
        (place[image], text) for image, text in (_by_owner(source) if source.positives is None else _stated(source))
        if image in place
    ]  # fmt: skip
    owned = set(concepts)
    kept = [text for text, item in enumerate(source.texts) if item.owner in owned]
    index = {text: row for row, text in enumerate(kept)}
    texts_of_image: list[list[int]] = [[] for _ in shown]
    images_of_text: list[list[int]] = [[] for _ in kept]
    for image, text in pairs:
        if text in index:
            texts_of_image[image].append(index[text])
            images_of_text[index[text]].append(image)
    return Gallery(
        texts=[source.texts[text].text for text in kept],
        image_concepts=concepts,
        text_concepts=[source.texts[text].owner for text in kept],
        texts_of_image=[np.array(sorted(set(right)), dtype=np.int64) for right in texts_of_image],
        images_of_text=[np.array(sorted(set(right)), dtype=np.int64) for right in images_of_text],
    )


def any_owner(source: EvaluationSet, shown: Sequence[int]) -> Gallery:
    """The same, where equal texts are one item."""
    return gallery((source.images[position].concept, source.images[position].texts) for position in shown)


def _by_owner(source: EvaluationSet) -> Iterable[tuple[int, int]]:
    texts_of: dict[str, list[int]] = {}
    for text, item in enumerate(source.texts):
        texts_of.setdefault(item.owner, []).append(text)
    return ((image, text) for image, of in enumerate(source.images) for text in texts_of.get(of.concept, ()))


def _stated(source: EvaluationSet) -> Iterable[tuple[int, int]]:
    for image, text in source.positives or ():
        if not (0 <= image < len(source.images) and 0 <= text < len(source.texts)):
            raise DataError(
                f"evaluation set {source.name}: a positive names image {image} and text {text}, but the set has "
                f"{len(source.images):,} images and {len(source.texts):,} texts"
            )
        yield image, text
