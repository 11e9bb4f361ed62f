"""Reads tables that are JSON files, piece by piece, so that memory does not grow with them.

{"url": ..., "caption": ...}                 one object per line; also a single one
[{"url": ..., "caption": ...}, ...]          one array of objects
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from align.errors import DataError
from align.formats.table_lines import as_text, lines_of

Row = dict[str, Any]

_CHUNK_CHARACTERS = 1 << 20
_MAX_VALUE_CHARACTERS = 16 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_ENDS = frozenset(",]")
_AFTER_VALUE = re.compile(r"[ \t\r\n]*[,\]]")
_AS_LINES = "write it as JSON lines: df.to_json(path, orient='records', lines=True)"


def rows_of(file: str, stream: IO[bytes]) -> Iterator[Row | None]:
    """The objects of a JSON array, or one per line; None for a line or item that is not an object.

    Raises:
        DataError: the JSON has another shape, or the array is damaged.
    """
    with as_text(stream) as text:
        start = ""
        while not start:
            line = text.readline(_CHUNK_CHARACTERS)
            if not line:
                return
            start = line.lstrip()
        if start[0] == "[":
            yield from _array(_Pieces(file, text, start))
            return
        lines = lines_of(text)
        rest = "" if start.endswith("\n") else next(lines, "")
        first = None if rest is None else object_of(start + rest)
        whole = first and all(isinstance(value, (dict, list)) for value in first.values())  # as pandas writes tables
        if whole or (first is None and start[0] == "{"):
            raise DataError(f"{file}: neither an array of objects nor one object per line; {_AS_LINES}")
        yield first
        yield from (None if line is None else object_of(line) for line in lines if line is None or line.strip())


def object_of(data: str | bytes) -> Row | None:
    """The parsed object; None if this is not a JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _array(pieces: _Pieces) -> Iterator[Row | None]:
    for number, value in enumerate(pieces.values()):
        if number == 0 and not isinstance(value, dict):
            raise DataError(f"{pieces.file}: an array of values without the names of their columns; {_AS_LINES}")
        yield value if isinstance(value, dict) else None
    if pieces.peek():
        raise DataError(f"{pieces.file}: something follows the JSON array; {_AS_LINES}")


class _Pieces:
    """Decodes a JSON array piece by piece; no value has more than _MAX_VALUE_CHARACTERS."""

    def __init__(self, file: str, stream: IO[str], start: str) -> None:
        """`start`: what was already read of the stream: the first bracket, and more."""
        self.file, self._stream = file, stream
        self._text, self._at = start, 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        if (first := self._text[self._at : self._at + 1]) and first not in " \t\r\n":
            return first
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._at = blank.end() if blank else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            self._text, self._at = self._stream.read(_CHUNK_CHARACTERS), 0
            if not self._text:
                return ""

    def values(self) -> Iterator[Any]:
        """The values of the array."""
        self._at += 1
        while self.peek() != "]":
            yield self._value()
            if self.peek() == ",":
                self._at += 1
            elif self.peek() != "]":
                self._damaged()
        self._at += 1

    def _value(self) -> Any:
        """The value that begins here, whole."""
        while True:
            self.peek()
            try:
                value, end = self._decode(self._text, self._at)
            except RecursionError:
                raise DataError(f"{self.file}: the JSON array is nested too deeply; {_AS_LINES}") from None
            except ValueError:
                end = -1
            if end >= 0 and (
                self._text[end : end + 1] in _ENDS or _AFTER_VALUE.match(self._text, end)
            ):  # otherwise it may be the first digits of a number
                self._at = end
                return value
            more = self._stream.read(_CHUNK_CHARACTERS)
            if not more or len(self._text) - self._at > _MAX_VALUE_CHARACTERS:
                self._damaged()
            self._text, self._at = self._text[self._at :] + more, 0

    def _damaged(self) -> NoReturn:
        raise DataError(f"{self.file}: the JSON array is cut off or damaged; fetch it again")
