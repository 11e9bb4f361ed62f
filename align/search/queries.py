"""Queries: of an image and a text (paper section 7), and labelled ones, which say how well an index answers.

Labelled queries (`data/queries.json`) are what people search for, with words that name a right picture. A picture is
right if one of its texts names one of the expected words, so anybody can check the verdict. The words were written down
together with the queries, before any model was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from align.errors import DataError
from align.formats.json_file import StoredModel, read_if_exists


class LabelledQuery(StoredModel):
    """A text query. An image is right if its texts name one of the words or phrases in `expected`."""

    query: str
    expected: list[str] = Field(min_length=1)


class ComposedQuery(StoredModel):
    """An image - text query.

    Attributes:
        image_text: chooses the image: the first of the index, in order of keys, with a text that names this.
        minus: the text that is taken away; the share of the results that name it should fall.
        expected: words that name what should remain.
    """

    image_text: str
    minus: str
    expected: list[str] = Field(min_length=1)


class QueryFile(StoredModel):
    """data/sample/queries.json."""

    schema_version: Literal[1]
    queries: list[LabelledQuery]
    composed: list[ComposedQuery]


def read_queries(path: Path) -> QueryFile:
    """Reads the labelled queries. Raises DataError if there is no such file, FormatError if it has another layout."""
    queries = read_if_exists(QueryFile, path, "correct it, or set index.queries to null")
    if queries is None:
        raise DataError(f"{path}: no such file; index.queries: null measures no labelled queries")
    return queries


def names(texts: Iterable[str], expected: Sequence[str]) -> bool:
    """Whether a text holds an expected word or phrase, as whole words, in upper or lower case."""
    patterns = [re.compile(rf"\b{re.escape(' '.join(word.split()).casefold())}\b") for word in expected]
    return any(pattern.search(" ".join(text.split()).casefold()) for text in texts for pattern in patterns)


def share_named(images: Sequence[Iterable[str]], expected: Sequence[str]) -> float:
    """Share in [0, 1] of images, each given by its texts, with a text that names an expected word; 0 for no image."""
    return sum(names(texts, expected) for texts in images) / len(images) if images else 0.0


def compose(
    image: NDArray[np.float32],
    *,
    plus: NDArray[np.float32] | None = None,
    minus: NDArray[np.float32] | None = None,
    text_weight: float,
) -> NDArray[np.float32]:
    """An image with a text added or taken away: image + text_weight x plus - text_weight x minus, normalised again.

    Args:
        image: (width,), L2-normalised.
        plus: (width,), L2-normalised.
        minus: (width,), L2-normalised.
        text_weight: 2 in the paper.

    Returns:
        (width,) float32, L2-normalised.

    Raises:
        ValueError: the sum is zero, so it has no direction.
    """
    total = image.astype(np.float64)
    if plus is not None:
        total = total + text_weight * plus
    if minus is not None:
        total = total - text_weight * minus
    norm = np.linalg.norm(total)
    if not norm > 0:
        raise ValueError("image and text cancel each other out")
    return np.asarray(total / norm, dtype=np.float32)
