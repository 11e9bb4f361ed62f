"""What a suite asks of captions besides retrieval: Multi30K and Crisscrossed Captions.

Files of ratings name pictures and captions by COCO's ids. They are read and looked up in the whole set before anything
is embedded, so that a wrong file is found at once. Pictures that cannot be shown to the model are left out, with what
the files say about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.errors import ConfigError, DataError
from align.evaluate.protocols.crisscrossed import (
    Crisscrossed,
    Rated,
    crisscrossed_correlations,
    crisscrossed_ranks,
)
from align.evaluate.protocols.multi30k import multi30k
from align.evaluate.protocols.recall import Direction, Gallery, Score
from align.evaluate.protocols.retrieval import retrieval_scores
from align.evaluate.ratings import SIS, SITS, STS, RatedPairs, read_rated_pairs
from align.formats.evaluation_set import EvaluationSet
from align.formats.evaluation_sets.files import joined
from align.interfaces.store import Files
from align.model.embedder import Embeddings

#: Standard deviations of 95 % of a normal distribution, on each side.
_95_PERCENT = 1.96


def read_ratings(source: EvaluationSet, files: Files | None) -> Crisscrossed | None:
    """Reads the ratings that the set's entry in the suite names, here or in S3, by positions in the set.

    Args:
        source: the set.
        files: reads them; None: there are none, as no suite was read.

    Returns:
        The ratings; None if the entry names none.

    Raises:
        DataError: a file is missing, the set has no ids, or a file names what is not in the set.
        FormatError: a file has another layout.
    """
    asked = source.asked
    if asked is None or asked.ratings is None:
        return None
    if files is None:
        raise ConfigError(f"evaluation set {source.name}: its ratings are read with its suite only")
    images = [image.number for image in source.images if image.number is not None]
    texts = [number for image in source.images for number in image.text_numbers]
    if len(images) != len(source.images) or len(texts) != len(source.texts):
        raise DataError(f"evaluation set {source.name}: {asked.path} has pictures or captions without COCO's ids")
    found = []
    for kind, (first, second) in {STS: (texts, texts), SIS: (images, images), SITS: (texts, images)}.items():
        try:
            placed = _of_kind(kind, joined(asked.ratings, f"{kind}_test.csv"), files).placed(first, second)
        except DataError as error:
            raise type(error)(f"evaluation set {source.name}: cxc: {error}") from None
        found.append(Rated(placed.first, placed.second, placed.ratings))
    return Crisscrossed(*found)


def _of_kind(kind: str, file: str, files: Files) -> RatedPairs:
    pairs = read_rated_pairs(file, files)
    if pairs.kind != kind:
        raise DataError(f"{file}: its pairs are those of {pairs.kind}_test.csv")
    return pairs


@dataclass(frozen=True)
class Shown:
    """The part of a set that was shown to the model.

    Attributes:
        source: the whole set.
        images: positions of its images, in increasing order.
        items: their gallery.
        image_embeds, text_embeds: of the images and of `items.texts`.
        directions: the ranks in both directions.
    """

    source: EvaluationSet
    images: Sequence[int]
    items: Gallery
    image_embeds: Embeddings
    text_embeds: Embeddings
    directions: Mapping[str, Direction]

    @property
    def texts(self) -> list[int]:
        """Positions of the texts in the whole set: those that belong to a picture that is shown."""
        owned = set(self.items.image_concepts)
        return [position for position, text in enumerate(self.source.texts) if text.owner in owned]


def captioned_scores(shown: Shown, ratings: Crisscrossed | None, *, num_resamples: int, seed: int) -> dict[str, Score]:
    """`multi30k/mean_recall` and so on, and those of `cxc`.

    Raises:
        DataError: as the protocols.
    """
    how: Any = {"num_resamples": num_resamples, "seed": seed}
    found: dict[str, Score] = {}
    asked = shown.source.asked
    if asked is not None and "multi30k" in asked.tasks:
        found |= {f"multi30k/{name}": score for name, score in multi30k(shown.directions, **how).items()}
    if ratings is not None:
        found |= {f"cxc/{name}": score for name, score in _crisscrossed(shown, ratings, how).items()}
    return found


def _crisscrossed(shown: Shown, rated: Crisscrossed, how: Mapping[str, int]) -> dict[str, Score]:
    """Four retrievals, and three correlations; chance of a correlation is 0."""
    images, texts = shown.images, shown.texts
    rated = Crisscrossed(
        sts=_among(rated.sts, texts, texts), sis=_among(rated.sis, images, images),
        sits=_among(rated.sits, texts, images),
    )  # fmt: skip
    embeds, found = (shown.image_embeds, shown.text_embeds), dict[str, Score]()
    units = shown.items.image_concepts, shown.items.text_concepts
    for name, direction in crisscrossed_ranks(*embeds, rated, units).items():
        part = retrieval_scores(direction, **how)
        found |= {f"{name}/{figure}": score for figure, score in part.items()}
    for name, one in crisscrossed_correlations(*embeds, rated, seed=how["seed"]).items():
        spread = _95_PERCENT * one.deviation
        found[name] = Score(one.mean, max(one.mean - spread, -1.0), min(one.mean + spread, 1.0), 0.0)
    return found


def _among(pairs: Rated, first: Sequence[int], second: Sequence[int]) -> Rated:
    """The pairs whose items were shown, by their positions among these; both increase."""
    one, other = (np.asarray(kept, dtype=np.int64) for kept in (first, second))
    known = np.isin(pairs.first, one) & np.isin(pairs.second, other)
    at = np.searchsorted(one, pairs.first[known]), np.searchsorted(other, pairs.second[known])
    return Rated(*at, pairs.ratings[known])
