"""Labelled queries over the pictures of a set: a text, or a picture minus a text (the paper's section 7).

A picture is right if one of its texts names an expected word, as in the report of `align index`, which asks the same
file over all pictures of an index. Here the gallery is a set, so that two models are asked the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from align.display.console import say
from align.errors import DataError
from align.evaluate.protocols.composed_queries import compose, precision_scores
from align.evaluate.protocols.recall import Score
from align.formats.evaluation_set import EvaluationImage
from align.formats.labelled_queries import QueryFile, names
from align.model.embedder import Embeddings

#: Of the text that is taken away from an image; the paper's.
TEXT_WEIGHT = 2.0


@dataclass(frozen=True)
class LabelledPictures:
    """The gallery.

    Attributes:
        name: of the set.
        images: its pictures that the model was shown.
        embeds: (num_images, width) theirs, L2-normalised.
        embed_texts: the model's.
    """

    name: str
    images: Sequence[EvaluationImage]
    embeds: Embeddings
    embed_texts: Callable[[Iterable[str]], Embeddings]

    def right(self, expected: Sequence[str]) -> NDArray[np.bool_]:
        """(num_images,) whether a text of the picture names one of the words."""
        return np.array([names(image.texts, expected) for image in self.images], dtype=bool)


def query_scores(pictures: LabelledPictures, queries: QueryFile, *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`text/precision@10`, of the queries that have a right picture; of those that start from a picture of the set,
    `image/expected/precision@10` and `image/minus/precision@10` of the picture alone, and the same two under
    `image_minus_text`: there the share of what was taken away should be lower.

    Raises:
        DataError: no query of either kind can be asked of this set, or the embeddings are not finite.
    """
    how: dict[str, Any] = {"num_resamples": num_resamples, "seed": seed}
    texts = [(query.query, labels) for query in queries.queries if (labels := pictures.right(query.expected)).any()]
    by_key = sorted(range(len(pictures.images)), key=lambda index: pictures.images[index].key)
    composed = []
    for query in queries.composed:
        named = (index for index in by_key if names(pictures.images[index].texts, [query.image_text]))
        if (first := next(named, None)) is not None:
            composed.append((first, query))
    num_asked, num_all = len(texts) + len(composed), len(queries.queries) + len(queries.composed)
    if not num_asked:
        raise DataError(f"evaluation set {pictures.name}: none of the {num_all:,} labelled queries has a right picture")
    if num_asked < num_all:
        say(f"evaluate: {pictures.name}: {num_all - num_asked:,} of {num_all:,} labelled queries have no picture in it")
    found: dict[str, Score] = {}
    if texts:
        embeds = pictures.embed_texts([text for text, _ in texts])
        found |= precision_scores(embeds, pictures.embeds, {"text": np.stack([labels for _, labels in texts])}, **how)
    if composed:
        own = np.array([index for index, _ in composed])
        start, minus = pictures.embeds[own], pictures.embed_texts([query.minus for _, query in composed])
        judged = {
            "expected": np.stack([pictures.right(query.expected) for _, query in composed]),
            "minus": np.stack([pictures.right([query.minus]) for _, query in composed]),
        }
        without = compose(start, minus, np.full(len(own), -TEXT_WEIGHT))
        for name, asked in (("image", start), ("image_minus_text", without)):
            right = {f"{name}/{label}": labels for label, labels in judged.items()}
            found |= precision_scores(asked, pictures.embeds, right, own, **how)
    return found
