"""Where pairs come from. Each kind of source reads its files into the two tables of `candidates.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.protocols.store import Files


class Source(Protocol):
    """One source. Can be pickled: worker processes get a copy, without its open files. Not for threads to share.

    Attributes:
        files: the units of scanning, in order of their names; each can be scanned by itself.
        inputs: every file that decides about the pairs; when one changes, work under way starts anew.
    """

    files: list[str]
    inputs: list[str]

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Streams over one file: batches of CANDIDATES and RESPONSES, a few thousand rows each.

        Args:
            file: one of `files`.
            counts: what was met is added to it: pages, pages_unreadable, truncated_files, rows, rows_unreadable.

        Raises:
            DataError: the file is damaged, or another thing than it should be; the message names it.
            ServiceError: as `Files`.
        """
        ...

    def read(self, file: str, offset: int | None) -> bytes | None:
        """The picture's bytes of a candidate or response; None where they cannot be had.

        Keeps a few files open for random access. Raises DataError where the file is another one than was scanned.
        """
        ...


def open_source(config: IngestConfig, location: str, files: Files) -> Source:
    """The source at a location. Cheap: it looks for files and does not read them.

    Raises:
        DataError: nothing of the kind is there.
        ServiceError: as `Files`.
    """
    # imported where it is asked for: a table of URLs needs no HTML parser
    match config.source:
        case "warc":
            from align.ingest.sources.warc import Warc

            return Warc(config, location, files)
        case "html":
            from align.ingest.sources.saved_pages import SavedPages

            return SavedPages(config, location, files)
        case "url_table":
            from align.ingest.sources.url_table import UrlTable

            return UrlTable(config, location, files)
        case "shards":
            from align.ingest.sources.shards import Shards

            return Shards(config, location, files)
        case "coco":
            from align.ingest.sources.coco import Coco

            return Coco(config, location, files)
