"""Files of a piece in numbered sections: a task writes one section for each task that reads it later.

The ends of the sections come first, as 64-bit numbers, so a reader on another machine asks for two ranges.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from align.durable.files import replaced
from align.durable.pieces import Pieces
from align.durable.processes import in_threads

#: Bytes by section.
Sizes = np.ndarray[tuple[int], np.dtype[np.int64]]

_WORD = 8
#: Held in memory of each section that is open.
_BUFFER_BYTES = 256 << 10
_NUM_THREADS = 4


def write_sections(path: Path, count: int, sections: Iterable[Iterable[bytes]]) -> None:
    """Writes a file; `sections` are `count` ones. It appears whole or not at all."""
    ends: Sizes = np.zeros(count, np.int64)
    with replaced(path, on_disk=False) as beside, beside.open("wb") as file:
        file.seek(_WORD * count)
        for number, parts in enumerate(sections):
            file.writelines(parts)
            ends[number] = file.tell()
        file.seek(0)
        file.write(ends.astype("<i8").tobytes())


def sizes_of(pieces: Pieces, piece: str, file: str, count: int) -> Sizes:
    """The bytes of each section."""
    return np.diff(_ends(pieces, piece, file, 0, count), prepend=_WORD * count)


def open_sections(
    pieces: Pieces, files: Sequence[tuple[str, str]], count: int, first: int, end: int
) -> Iterator[BinaryIO]:
    """The sections from `first` to before `end` of each file, as streams.

    Args:
        pieces: where the files are.
        files: (piece, file) each.
        count: of the sections of a file.
        first, end: which sections.
    """

    def opened(named: tuple[str, str]) -> BinaryIO:
        ends = _ends(pieces, *named, max(0, first - 1), end)
        start = int(ends[0]) if first else _WORD * count
        stream = io.BufferedReader(_Range(pieces, named, start, int(ends[-1])), _BUFFER_BYTES)
        stream.peek(1)
        return stream

    yield from in_threads(opened, files, _NUM_THREADS)


def _ends(pieces: Pieces, piece: str, file: str, first: int, end: int) -> Sizes:
    return np.frombuffer(pieces.read(piece, file, _WORD * first, _WORD * (end - first)), "<i8").astype(np.int64)


class _Range(io.RawIOBase):
    """Bytes of a file of a piece."""

    def __init__(self, pieces: Pieces, named: tuple[str, str], start: int, end: int) -> None:
        self._pieces, self._named, self._at, self._end = pieces, named, start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._end - self._at)
        data = self._pieces.read(*self._named, self._at, size) if size else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
