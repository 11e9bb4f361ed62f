"""The texts of a picture in one value of a table or JSON: a text, or a list of texts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from align.ingest.limits import MAX_TEXTS

#: Why a value cannot be read.
NESTED = "an object or a list where a text is expected"
TOO_MANY = f"too large: more than {MAX_TEXTS:,} texts of one picture"


def texts_of(value: Any) -> tuple[list[str], str | None]:
    """The texts in a value, and why it cannot be read, or None.

    A list gives each of its texts, nulls skipped. Where there is no text, there is one empty text: the picture is a
    pair. Numbers are texts as they are.

    Args:
        value: as JSON or Arrow has it; a list may be an Arrow array; nothing of it is converted before it is known to
            be short.
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
