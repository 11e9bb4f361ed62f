"""The sources of pairs. Each kind of source reads its files into the two tables of `candidates.py`.

Another kind comes in as a module with a class like `Source`, which reads files that are there (`services/files`). No
source fetches the pictures that it names, and none leaves out a pair without a count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.durable.files import require_utf8
from align.errors import DataError
from align.formats.table import is_picture_name
from align.ingest.sources.picture_files import is_folder
from align.ingest.sources.reading import parent
from align.interfaces.store import Files


class Source(Protocol):
    """One source. Can be pickled: worker processes get a copy without its open files. Threads must not share it."""

    #: The units of scanning, in order of their names; each can be scanned separately.
    files: list[str]
    #: Every file that decides the pairs; when one changes, unfinished work starts again.
    inputs: list[str]

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """Streams one file as batches of CANDIDATES and RESPONSES, with a few thousand rows each.

        Args:
            file: one of `files`.
            counts: the scan adds to it: pages, pages_unreadable, pages_too_large, records_unreadable, rows,
                rows_unreadable; for a damaged file of which a part was read those of `reading.count_damage`; for web
                archives also bytes_lost, pages_coding_absent, pages_coding_unknown, and those of `outcomes`.

        Raises:
            DataError: nothing of the file can be read, or it is of another kind; the message names it.
            ServiceError: as `Files`.
        """
        ...

    def read(self, file: str, offset: int | None) -> bytes | None:
        """The bytes of the picture of a candidate or response; None if they cannot be read.

        Keeps a few files open for random access.

        Raises:
            DataError: the file has changed since the scan.
            TooLarge: the picture has more than `ingest.max_record_bytes`; the message is the reason of its row.
        """
        ...


def open_source(config: IngestConfig, location: str, files: Files) -> Source:
    """The source at a location. Cheap: files are listed, and at most the beginnings of tables read.

    Raises:
        DataError: the location has no files of this kind, or the plan cannot hold the name of one.
        ServiceError: as `Files`.
    """
    source = _opened(config, location, files)
    if config.source in ("warc", "shards"):  # their pictures are found by the file that holds them
        for file in source.files:
            require_utf8(file)
    return source


def require_seen_by_dvc(source: Source, location: str, raw: Path) -> None:
    """Raises DataError for a single table that names pictures beside it: DVC would not see a change of these.

    `location` is `paths.archive`, where a list of files stands for those in it; `raw` is the out.
    """
    if location.lower().endswith((".paths", ".paths.gz")) or is_folder(location, source.inputs):
        return
    if not any(file.endswith("/") or is_picture_name(file) for file in source.inputs):
        return
    folder = parent(source.inputs[0])
    todo = f"give the folder, so that DVC sees its pictures: paths.archive: {folder}"
    if "://" not in folder and raw.resolve().is_relative_to(Path(folder).resolve()):
        todo = "put it and its pictures into a folder of their own, and name that folder: paths.archive"
    raise DataError(f"{location}: DVC would see this alone, and no change of the pictures that it names; {todo}")


def _opened(config: IngestConfig, location: str, files: Files) -> Source:
    # imported only when needed: a table of URLs needs no HTML parser
    match config.source:
        case "warc":
            from align.ingest.sources.archives.warc import Warc

            return Warc(config, location, files)
        case "folder":
            from align.ingest.sources.folder import Folder

            return Folder(config, location, files)
        case "url_table":
            from align.ingest.sources.url_table import UrlTable

            return UrlTable(config, location, files)
        case "shards":
            from align.ingest.sources.shards import Shards

            return Shards(config, location, files)
        case "coco":
            from align.ingest.sources.coco import Coco

            return Coco(config, location, files)
