"""Labelled queries: does search find what a person meant? And how image and text make one query (paper section 7).

A found image is right if one of its texts names one of the expected words, so that anybody can check it. The words were
written down beside the queries, before any model was asked.
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
    """A text query. `expected`: words or phrases; an image whose texts name one of them is right."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    query: str
    expected: list[str] = Field(min_length=1)


class ComposedQuery(BaseModel):
    """Image minus text.

    Attributes:
        image_text: the image is the first of the index, in order of keys, that a text of its own names so.
        minus: the text that is taken away; the share of the results that name it should fall.
        expected: words that name what should be left.
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
        FormatError: it has another layout.
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
    """Whether a text holds an expected word or phrase, as whole words, whatever their case."""
    patterns = [re.compile(rf"\b{re.escape(' '.join(word.split()).casefold())}\b") for word in expected]
    return any(pattern.search(" ".join(text.split()).casefold()) for text in texts for pattern in patterns)


def share_named(found: Sequence[Iterable[str]], expected: Sequence[str]) -> float:
    """Share in [0, 1] of the found images (each given by its texts) that name the class; 0 if none was found."""
    return sum(names(texts, expected) for texts in found) / len(found) if found else 0.0


def compose(
    image: NDArray[np.float32],
    *,
    plus: NDArray[np.float32] | None = None,
    minus: NDArray[np.float32] | None = None,
    text_weight: float,
) -> NDArray[np.float32]:
    """An image with something added or taken away: image + text_weight x text, or minus, normalised again.

    Args:
        image: (width,), L2-normalised.
        plus: (width,), L2-normalised.
        minus: (width,), L2-normalised.
        text_weight: 2 in the paper.

    Raises:
        ValueError: the sum is zero, so that it has no direction.
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
    """Share of the top results that name what is taken away, before (image alone) and after (image - text)."""

    before: float
    after: float


def minus_share_ratio(outcomes: Sequence[MinusOutcome]) -> float:
    """Mean share after over mean share before; 0.5 halves it. 1 where there was nothing to take away."""
    before = sum(outcome.before for outcome in outcomes)
    after = sum(outcome.after for outcome in outcomes)
    return after / before if before > 0 else 1.0
