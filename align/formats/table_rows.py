"""Reads the rows of text tables in bounded memory: separated values, JSON lines, and arrays of JSON objects.

How a table of separated values is written is looked up in its beginning (`layout_of`): what separates its values, and
its encoding. Not by `csv.Sniffer`: its regular expressions take a time that grows with the square of what a stranger
sends. Not by DuckDB either, see DECISIONS.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from gzip import BadGzipFile
from typing import IO, Any, NamedTuple

from align.errors import DataError

#: Longest value of a CSV: a data: URI can have three million. After an unbalanced quote everything up to this length is
#: one value.
_MAX_VALUE_CHARACTERS = 4 << 20
#: A longer line is cut there.
_MAX_LINE_CHARACTERS = 8 << 20
#: An item of a JSON array, and what is read of one at a time.
_MAX_ITEM_CHARACTERS, _CHUNK_CHARACTERS = 16 << 20, 1 << 20
#: What separates values; of those that fit equally well, the first.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF8 = "utf-8-sig"
#: Bytes that tell the encoding, and characters of them that tell the separator.
_HEAD_BYTES, _HEAD_CHARACTERS = 1 << 20, 1 << 16
_BLOCK_BYTES = 1 << 16
_BLANK = re.compile(r"[ \t\r\n]*")
_AFTER_ITEM = re.compile(r"[ \t\r\n]*(?:,|(?=\]))")
_AS_LINES = "write it as JSON lines: df.to_json(path, orient='records', lines=True)"


class Layout(NamedTuple):
    """How a table is written.

    Attributes:
        separator: of values.
        quoted: whether a value may be in quotes. In a TSV it is not: the texts of Conceptual Captions contain
            unbalanced quotes.
        encoding: as Python names it.
    """

    separator: str
    quoted: bool
    encoding: str

    def __str__(self) -> str:
        """What was found that is not usual; empty if nothing is."""
        found = [f"separated by {_SEPARATORS[self.separator]}"] if self.quoted and self.separator != "," else []
        return ", ".join(found if self.encoding == _UTF8 else [*found, f"encoded in {self.encoding}"])


def layout_of(stream: IO[bytes], *, tabs: bool) -> Layout:
    """Looks at the beginning of a table, and returns to it.

    Args:
        stream: the bytes; it may be cut off or damaged.
        tabs: tabs separate the values, which are not quoted. Otherwise they may be quoted, and are separated by the one
            of `_SEPARATORS` by which most rows have as many values as the first one.
    """
    head = b""
    with suppress(EOFError, zlib.error, BadGzipFile):  # who reads the rows finds it again
        while len(head) < _HEAD_BYTES and (block := stream.read(_BLOCK_BYTES)):
            head += block
    stream.seek(0)
    encoding = _encoding_of(head)
    if tabs:
        return Layout("\t", False, encoding)
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head)[:_HEAD_CHARACTERS]
    fits = {each: _fit(text, each) for each in _SEPARATORS}
    return Layout(max(fits, key=lambda each: fits[each]), True, encoding)


def _encoding_of(head: bytes) -> str:
    """UTF-16 has its mark. A few bytes that are not UTF-8 are damage; if most are not, the text is of Windows."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = head.decode("utf-8", "replace")
        num_wrong, num_beyond_ascii = text.count("\ufffd"), sum(not character.isascii() for character in text)
        return "windows-1252" if 2 * num_wrong > num_beyond_ascii else _UTF8
    return _UTF8


def _fit(text: str, separator: str) -> float:
    """The share of rows with as many values as the first one; 0 if that has one value."""
    try:
        sizes = [len(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error:
        return 0.0
    sizes = sizes[:-1] if len(sizes) > 1 and len(text) == _HEAD_CHARACTERS else sizes  # the last row may be cut off
    return sizes.count(sizes[0]) / len(sizes) if sizes and sizes[0] > 1 else 0.0


def separated_rows(stream: IO[bytes], layout: Layout) -> Iterator[list[str] | None]:
    """The rows of a CSV or TSV without empty lines; None for a row that cannot be split."""
    with _as_text(stream, newline="" if layout.quoted else "\n", encoding=layout.encoding) as text:
        if not layout.quoted:
            for line in _lines(text):
                if stripped := line.rstrip("\r\n"):
                    yield stripped.split(layout.separator) if len(line) < _MAX_LINE_CHARACTERS else None
            return
        csv.field_size_limit(_MAX_VALUE_CHARACTERS)
        rows = csv.reader(_lines(text), delimiter=layout.separator)
        while True:
            try:
                row = next(rows, None)
            except csv.Error:
                yield None
                continue
            if row is None:
                return
            if row:
                yield row


def json_rows(stream: IO[bytes], name: str) -> Iterator[dict[str, Any] | None]:
    """The objects of a JSON array, or one per line; None for a line or item that is not an object.

        {"url": ..., "caption": ...}                 one object per line; also a single one
        [{"url": ..., "caption": ...}, ...]          one array of objects

    Raises:
        DataError: the JSON has another shape, or the array is damaged; `name` is its file.
    """
    with _as_text(stream) as text:
        start = ""
        while not start:
            line = text.readline(_CHUNK_CHARACTERS)
            if not line:
                return
            start = line.lstrip()
        if start[0] == "[":
            yield from _objects(text, start, name)
            return
        lines = _lines(text)
        first = object_of(start if start.endswith("\n") else start + next(lines, ""))
        whole = first and all(isinstance(value, (dict, list)) for value in first.values())  # as pandas writes tables
        if whole or (first is None and start[0] == "{"):
            raise DataError(f"{name}: neither an array of objects nor one object per line; {_AS_LINES}")
        yield first
        yield from (object_of(line) for line in lines if line.strip())


def object_of(data: str | bytes) -> dict[str, Any] | None:
    """The parsed object; None if this is not a JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _objects(stream: IO[str], text: str, name: str) -> Iterator[dict[str, Any] | None]:
    """The items of a JSON array, see `json_rows`; `text` is what was read of it: the bracket, and perhaps more."""
    decode, at, is_first = json.JSONDecoder().raw_decode, 1, True
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere
        if text.startswith("]", at):
            break
        end = -1
        try:
            item, end = decode(text, at)
        except RecursionError:
            raise DataError(f"{name}: the JSON array is nested too deeply; {_AS_LINES}") from None
        except ValueError:
            pass
        if end >= 0 and (after := _AFTER_ITEM.match(text, end)):  # otherwise it may be the first digits of a number
            if is_first and not isinstance(item, dict):
                raise DataError(f"{name}: an array of values without the names of their columns; {_AS_LINES}")
            yield item if isinstance(item, dict) else None
            at, is_first = after.end(), False
            continue
        more = stream.read(_CHUNK_CHARACTERS)
        if not more or len(text) - at > _MAX_ITEM_CHARACTERS:
            raise DataError(f"{name}: the JSON array is cut off or damaged; fetch it again")
        text, at = text[at:] + more, 0
    text = text[at + 1 :]
    while _BLANK.fullmatch(text):
        if not (text := stream.read(_CHUNK_CHARACTERS)):
            return
    raise DataError(f"{name}: something follows the JSON array; {_AS_LINES}")


def _lines(text: io.TextIOBase) -> Iterator[str]:
    """The lines with their ends. One that is too long is cut, and its rest is skipped: it cannot be split or parsed."""
    while line := text.readline(_MAX_LINE_CHARACTERS):
        yield line
        while len(line) == _MAX_LINE_CHARACTERS and not line.endswith(("\n", "\r")):
            line = text.readline(_MAX_LINE_CHARACTERS)


@contextmanager
def _as_text(stream: IO[bytes], newline: str | None = None, encoding: str = _UTF8) -> Iterator[io.TextIOWrapper]:
    """A stream as text. The caller closes the stream."""
    text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline=newline)
    try:
        yield text
    finally:
        with suppress(ValueError):  # the caller closed the stream before this generator ended
            text.detach()
