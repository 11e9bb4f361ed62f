"""The texts of a picture in one value of a table or JSON: a text, or a list of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from align.ingest.limits import MAX_TEXTS
from align.pairs.text import normalise

#: A text and its source; an empty text has none.
Sourced = tuple[str, str | None]

#: Why a value cannot be read.
NESTED = "an object or a list where a text is expected"
TOO_MANY = f"too large: more than {MAX_TEXTS:,} texts of one picture"


def texts_of(value: Any) -> tuple[list[str], str | None]:
    """The texts in a value, and why it cannot be read, or None.

    A list, which may be an Arrow array, gives each of its texts, nulls skipped; nothing of it is converted before it is
    known to be short. Where there is no text, there is one empty text: the picture is a pair. Numbers are texts as they
    are.
    """
    if isinstance(value, str):
        return [value], None
    if value is None:
        return [""], None
    if isinstance(value, dict):
        return [""], NESTED
    if not isinstance(value, (list, tuple, pa.Array)):
        return [str(value)], None
    if len(value) > MAX_TEXTS:
        return [""], TOO_MANY
    items = value.to_pylist() if isinstance(value, pa.Array) else value
    if any(isinstance(item, (dict, list, tuple)) for item in items):
        return [""], NESTED
    return [str(item) for item in items if item is not None] or [""], None


def texts_of_each(values: Iterable[Any], sources: Sequence[str]) -> tuple[list[Sourced], str | None]:
    """The texts in one value of each source, see `texts_of`; of several sources see `distinct`."""
    found = [texts_of(value) for value in values]
    problem = next((why for _, why in found if why), None)
    texts = [(text, source) for (some, _), source in zip(found, sources, strict=True) for text in some]
    if problem or not texts:
        return [("", None)], problem
    if len(found) > 1:
        return distinct(texts), None
    return [(text, source if text.strip() else None) for text, source in texts], None


def distinct(texts: Iterable[tuple[str, str]]) -> list[Sourced]:
    """Of a picture's texts those that say something, of equal ones the first; an empty one if there is none."""
    found: dict[str, Sourced] = {}
    for text, source in texts:
        found.setdefault(normalise(text), (text, source))
    found.pop("", None)
    return [*found.values()] or [("", None)]
