"""Labelled queries (`data/queries.json`): what people search for, and words that name a right picture.

A picture is right if one of its texts names one of the expected words, so anybody can check the verdict. The words were
written down together with the queries, before any model was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from align.errors import DataError, FormatError
from align.formats.json_file import StoredModel


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
        key = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path}: {key}: {first['msg']}") from None


def names(texts: Iterable[str], expected: Sequence[str]) -> bool:
    """Whether a text holds an expected word or phrase, as whole words, in upper or lower case."""
    patterns = [re.compile(rf"\b{re.escape(' '.join(word.split()).casefold())}\b") for word in expected]
    return any(pattern.search(" ".join(text.split()).casefold()) for text in texts for pattern in patterns)
