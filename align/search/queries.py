"""Labelled queries, which measure whether search finds what a person means; and image + text queries (paper section 7).

An image is right if one of its texts names one of the expected words, so anybody can check the verdict. The words were
written down together with the queries, before any model was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.errors import DataError, FormatError


class LabelledQuery(BaseModel):
    """A text query. An image is right if its texts name one of the words or phrases in `expected`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    query: str
    expected: list[str] = Field(min_length=1)


class ComposedQuery(BaseModel):
    """An image - text query.

    Attributes:
        image_text: chooses the image: the first of the index, in order of keys, with a text that names this.
        minus: the text that is taken away; the share of the results that name it should fall.
        expected: words that name what should remain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image_text: str
    minus: str
    expected: list[str] = Field(min_length=1)


class QueryFile(BaseModel):
    """data/sample/queries.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1]
    queries: list[LabelledQuery]
    composed: list[ComposedQuery]


def read_queries(path: Path) -> QueryFile:
    """Reads the labelled queries.

    Raises:
        DataError: no such file.
        FormatError: the file has another layout.
    """
    try:
        return QueryFile.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; index.queries: null measures no labelled queries") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path}: {where}: {first['msg']}") from None


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


@dataclass(frozen=True)
class MinusOutcome:
    """Share of the top results that name the text taken away, before (image alone) and after (image - text)."""

    before: float
    after: float


def minus_share_ratio(outcomes: Sequence[MinusOutcome]) -> float:
    """Mean share after, divided by mean share before: 0.5 if it halves. 1 if there was nothing to take away."""
    before = sum(outcome.before for outcome in outcomes)
    after = sum(outcome.after for outcome in outcomes)
    return after / before if before > 0 else 1.0
