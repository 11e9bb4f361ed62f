"""Reads text tables row by row: separated values and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from align.errors import DataError

_ADDRESS = re.compile(r"\s*\"?(?:(?:https?:)?//|data:)\S", re.IGNORECASE)
#: Longest value of a CSV. After an unbalanced quote everything up to this length is one value.
_MAX_VALUE_CHARACTERS = 4 << 20
_CHUNK_CHARACTERS = 1 << 20
_MAX_OBJECT_CHARACTERS = 16 << 20


def is_address(value: str) -> bool:
    """Whether a value looks like a picture's absolute address."""
    return _ADDRESS.match(value) is not None


def separated_rows(stream: IO[bytes], separator: str) -> Iterator[list[str] | None]:
    """The rows of a CSV or TSV without empty lines; None for a row that cannot be split.

    A TSV has no quoting: the texts of Conceptual Captions contain unbalanced quotes.
    """
    tabs = separator == "\t"
    with _text(stream, newline="\n" if tabs else "") as text:
        if tabs:
            lines = (line.rstrip("\r\n") for line in text)
            yield from (line.split("\t") for line in lines if line)
            return
        csv.field_size_limit(_MAX_VALUE_CHARACTERS)
        rows = csv.reader(text)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error:
                yield None
                continue
            if row:
                yield row


@contextmanager
def _text(stream: IO[bytes], newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """The stream as text; the caller closes the stream."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=newline)
    try:
        yield text
    finally:
        text.detach()


def json_rows(file: str, stream: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON array, or one per line; None for a line that is not an object.

    Raises:
        DataError: the JSON has another shape, or the array is damaged.
    """
    with _text(stream) as text:
        start = ""
        while not start:
            line = text.readline(_CHUNK_CHARACTERS)
            if not line:
                return
            start = line.lstrip()
        if start[0] == "[":
            yield from _array(file, start[1:], text)
            return
        rest = start + (text.readline() if not start.endswith("\n") else "")
        first = _object(rest)
        if first is None and rest[0] == "{":
            raise DataError(f"{file}: neither an array of objects nor one object per line; write it as JSON lines")
        yield first
        yield from (_object(line) for line in text if line.strip())


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _array(file: str, text: str, stream: IO[str]) -> Iterator[dict[str, Any] | None]:
    """Decodes one object after another from the text read so far."""
    decoder = json.JSONDecoder()
    position = 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if text[position : position + 1] == "]":
            return
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError:
            more = stream.read(_CHUNK_CHARACTERS)
            if not more or len(text) - position > _MAX_OBJECT_CHARACTERS:
                raise DataError(f"{file}: the JSON array is cut off or damaged; fetch it again") from None
            text, position = text[position:] + more, 0
            continue
        yield value if isinstance(value, dict) else None
