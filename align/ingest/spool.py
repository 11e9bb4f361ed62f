"""Bytes on disk for the time between two orders: that in which they come, and that in which they are needed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self


class Spool:
    """Pieces of bytes in a file without a name that ends with this process. A context manager.

    Threads may read at the same time. The file is on the disk of `folder`, which need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
        self._file = tempfile.TemporaryFile(dir=nearest)  # noqa: SIM115 -- closed by __exit__
        self._spans: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, data: bytes) -> int:
        """Appends a piece; returns its position."""
        self._spans.append((self._file.tell(), len(data)))
        self._file.write(data)
        return len(self._spans) - 1

    def read(self, positions: Iterable[int]) -> Iterator[bytes]:
        """The pieces at these positions, one in memory at a time."""
        self._file.flush()
        for position in positions:
            offset, size = self._spans[position]
            yield os.pread(self._file.fileno(), size, offset)
