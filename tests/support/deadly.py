"""Work that kills its process, as the kernel does for its memory, and a source with a file that does."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from align.ingest.sources import Source


def twice(item: int) -> int:
    """The double of an item."""
    return 2 * item


def deadly(items: frozenset[int], item: int) -> int:
    """The double of an item, unless it is one of `items`."""
    if item in items:
        os.kill(os.getpid(), signal.SIGKILL)
    return twice(item)


def deadly_once(mark: Path, item: int) -> int:
    """As `twice`, but the first worker that comes to item 3 dies; `mark` is a file that says so."""
    if item == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return twice(item)


class DeadlySource:
    """A source, where reading some files kills the process half way."""

    def __init__(self, source: Source, deadly: str) -> None:
        self._source, self._deadly = source, deadly
        self.files, self.inputs = source.files, source.inputs

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`."""
        for batch in self._source.scan(file, counts):
            yield batch
            if self._deadly in file:
                os.kill(os.getpid(), signal.SIGKILL)

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`."""
        return self._source.read(file, offset)
