"""Reads text tables row by row: separated values and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from align.errors import DataError

_ADDRESS = re.compile(r"\s*\"?(?:(?:https?:)?//|data:)\S", re.IGNORECASE)
#: Longest value of a CSV: a data: URI can have three million. After an unbalanced quote everything up to this length is
#: one value.
_MAX_VALUE_CHARACTERS = 4 << 20
#: Of a line. A longer one is skipped, as a row that cannot be split.
_MAX_LINE_CHARACTERS = 8 << 20
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
            for line in _lines(text):
                stripped = None if line is None else line.rstrip("\r\n")
                if stripped != "":
                    yield None if stripped is None else stripped.split("\t")
            return
        csv.field_size_limit(_MAX_VALUE_CHARACTERS)
        skipped: list[None] = []
        rows = csv.reader(_without_skipped(_lines(text), skipped))
        while True:
            try:
                row = next(rows, None)
            except csv.Error:
                yield None
                continue
            yield from skipped
            skipped.clear()
            if row is None:
                return
            if row:
                yield row


def _without_skipped(lines: Iterator[str | None], skipped: list[None]) -> Iterator[str]:
    """The lines that are not None; the others are added to `skipped`."""
    for line in lines:
        if line is None:
            skipped.append(None)
        else:
            yield line


def _lines(text: io.TextIOBase) -> Iterator[str | None]:
    """The lines with their ends; None for one that is too long, whose rest is skipped."""
    while line := text.readline(_MAX_LINE_CHARACTERS):
        if len(line) < _MAX_LINE_CHARACTERS:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = text.readline(_MAX_LINE_CHARACTERS)
        yield None


@contextmanager
def _text(stream: IO[bytes], newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """The stream as text; the caller closes the stream."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=newline)
    try:
        yield text
    finally:
        with suppress(ValueError):  # the caller closed the stream before this generator ended
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
        lines = _lines(text)
        rest = "" if start.endswith("\n") else next(lines, "")
        first = None if rest is None else _object(start + rest)
        if first is None and rest is not None and start[0] == "{":
            raise DataError(f"{file}: neither an array of objects nor one object per line; write it as JSON lines")
        yield first
        yield from (None if line is None else _object(line) for line in lines if line is None or line.strip())


def _object(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
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
        except RecursionError:
            raise DataError(f"{file}: the JSON array is nested too deeply; write it as JSON lines") from None
        yield value if isinstance(value, dict) else None
