"""Reads text tables row by row: lines, and separated values in them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

_ADDRESS = re.compile(r"\s*\"?(?:(?:https?:)?//|data:)\S", re.IGNORECASE)
#: Longest value of a CSV: a data: URI can have three million. After an unbalanced quote everything up to this length is
#: one value.
_MAX_VALUE_CHARACTERS = 4 << 20
#: The longest line. A longer one is skipped, as a row that cannot be split.
_MAX_LINE_CHARACTERS = 8 << 20


def is_address(value: str) -> bool:
    """Whether a value looks like a picture's absolute address."""
    return _ADDRESS.match(value) is not None


def separated_rows(stream: IO[bytes], separator: str) -> Iterator[list[str] | None]:
    """The rows of a CSV or TSV without empty lines; None for a row that cannot be split.

    A TSV has no quoting: the texts of Conceptual Captions contain unbalanced quotes.
    """
    tabs = separator == "\t"
    with as_text(stream, newline="\n" if tabs else "") as text:
        if tabs:
            for line in lines_of(text):
                stripped = None if line is None else line.rstrip("\r\n")
                if stripped != "":
                    yield None if stripped is None else stripped.split("\t")
            return
        csv.field_size_limit(_MAX_VALUE_CHARACTERS)
        skipped: list[None] = []
        rows = csv.reader(_without_skipped(lines_of(text), skipped))
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
def as_text(stream: IO[bytes], newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """A stream as text. The caller closes the stream."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=newline)
    try:
        yield text
    finally:
        with suppress(ValueError):  # the caller closed the stream before this generator ended
            text.detach()
