"""Reads text tables row by row: lines, and separated values in them.

How a table is written is looked up in its beginning (`layout_of`): what separates its values, and its encoding. Not by
`csv.Sniffer`: its regular expressions take a time that grows with the square of what a stranger sends.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from gzip import BadGzipFile
from typing import IO, NamedTuple

_ADDRESS = re.compile(r"\s*\"?(?:(?:https?:)?//|data:)\S", re.IGNORECASE)
#: Longest value of a CSV: a data: URI can have three million. After an unbalanced quote everything up to this length is
#: one value.
_MAX_VALUE_CHARACTERS = 4 << 20
#: The longest line. A longer one is skipped, as a row that cannot be split.
_MAX_LINE_CHARACTERS = 8 << 20
#: What separates values; of those that fit equally well, the first.
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF8 = "utf-8-sig"
#: Bytes that tell the encoding, and characters of them that tell the separator.
_HEAD_BYTES, _HEAD_CHARACTERS = 1 << 20, 1 << 16
_BLOCK_BYTES = 1 << 16


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


def layout_of(stream: IO[bytes], separator: str | None = None) -> Layout:
    """Looks at the beginning of a table, and returns to it.

    Args:
        stream: the bytes; it may be cut off or damaged.
        separator: of values that are not quoted, if it is known. None: the one of `_SEPARATORS` by which most rows have
            as many values as the first one.
    """
    head = b""
    with suppress(EOFError, zlib.error, BadGzipFile):  # who reads the rows finds it again
        while len(head) < _HEAD_BYTES and (block := stream.read(_BLOCK_BYTES)):
            head += block
    stream.seek(0)
    encoding = _encoding_of(head)
    if separator is not None:
        return Layout(separator, False, encoding)
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


def is_address(value: str) -> bool:
    """Whether a value looks like a picture's absolute address."""
    return _ADDRESS.match(value) is not None


def separated_rows(stream: IO[bytes], layout: Layout) -> Iterator[list[str] | None]:
    """The rows of a CSV or TSV without empty lines; None for a row that cannot be split."""
    with as_text(stream, newline="" if layout.quoted else "\n", encoding=layout.encoding) as text:
        if not layout.quoted:
            for line in lines_of(text):
                stripped = None if line is None else line.rstrip("\r\n")
                if stripped != "":
                    yield None if stripped is None else stripped.split(layout.separator)
            return
        csv.field_size_limit(_MAX_VALUE_CHARACTERS)
        skipped: list[None] = []
        rows = csv.reader(_without_skipped(lines_of(text), skipped), delimiter=layout.separator)
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


def lines_of(text: io.TextIOBase) -> Iterator[str | None]:
    """The lines with their ends; None for one that is too long, whose rest is skipped."""
    while line := text.readline(_MAX_LINE_CHARACTERS):
        if len(line) < _MAX_LINE_CHARACTERS:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = text.readline(_MAX_LINE_CHARACTERS)
        yield None


@contextmanager
def as_text(stream: IO[bytes], newline: str | None = None, encoding: str = _UTF8) -> Iterator[io.TextIOWrapper]:
    """A stream as text. The caller closes the stream."""
    text = io.TextIOWrapper(stream, encoding=encoding, errors="replace", newline=newline)
    try:
        yield text
    finally:
        with suppress(ValueError):  # the caller closed the stream before this generator ended
            text.detach()
