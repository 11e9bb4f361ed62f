"""Tables of picture addresses and texts: parquet, CSV, TSV, JSON, plain lists; also gzipped (`tables.py`).

A `.txt` has one address per line, optionally followed by a tab and a text. In a folder it is a table only if addresses
begin it: others are left out, and named. A list of texts in JSON or parquet gives a row for each text. A line that
cannot be read is counted.

A picture may also be a file in the folder of its table, by its path or as file://; never one outside of it. Or it is
inside of a parquet file (`inside.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.display.console import say
from align.errors import DataError
from align.formats.table import ADDRESS_COLUMNS, PICTURE_COLUMNS, PLAIN_LISTS, TABLES, Row, is_address, is_picture_name
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.inside import PicturesInside
from align.ingest.sources.picture_files import PictureFiles, folder_of, is_file_name, read_picture
from align.ingest.sources.reading import Batches, is_local, is_on_web, is_within, parent
from align.ingest.sources.tables import NO_PICTURE, Tables, WrittenPairs, add_pairs
from align.interfaces.store import Files
from align.pairs.urls import Address, Resolver

#: Lists of locations (`StoreFiles.list`).
_LISTS = (".paths", ".paths.gz")
#: Rows that are looked at to tell a list of addresses from other texts.
_HEAD_LINES = 20
#: Rows of the first table that are looked at to tell whether the tables name files.
_HEAD_ROWS = 100


class UrlTable:
    """A source, see `align.ingest.sources.Source`. Its pictures come from the web, or from the folder of a table."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no table."""
        listed = files.list(location, (*TABLES, *PLAIN_LISTS), config.paths_root)
        self._tables = Tables(config, files, (*ADDRESS_COLUMNS, *PICTURE_COLUMNS))
        self._store = files
        self._max_bytes = config.max_record_bytes
        if listed != [location] and not location.lower().endswith(_LISTS):
            listed = [file for file in listed if not file.lower().endswith(PLAIN_LISTS) or self._is_list(file)]
        if not listed:
            raise DataError(f"{location}: no table exists there, and no .txt that begins with addresses")
        if len(listed) == 1 and self._is_empty(listed[0]):
            raise DataError(f"{listed[0]}: the table is empty")
        self._inside = PicturesInside(config, files, self._tables, folder_of(location, listed))
        self._parts = self._inside.tasks(listed)
        self.files = [*self._parts]
        self._folders = sorted({parent(file) for file in listed if not is_on_web(file)})
        self._resolver = Resolver("")
        self.inputs = [*listed, *self._beside(listed)]

    def _beside(self, files: Sequence[str]) -> Sequence[str]:
        """The pictures in the tables' folders that they name. Reads all rows only if the first rows name one."""
        head = next((list(islice(self._named(file), _HEAD_ROWS)) for file in files), [])
        if not any(head):
            return []
        return sorted({path for file in files for path in self._named(file) if path is not None})

    def _named(self, file: str) -> Iterator[str | None]:
        """For each row of a table the picture in the table's folder that it names, or None.

        A table that cannot be read names none: `scan` says why.
        """
        if not is_local(file):
            return
        pictures = PictureFiles(self._store, parent(file))
        with suppress(DataError):
            for pairs in self._tables.rows(file, Counter(), str):
                yield None if pairs.inside else self._picture(file, pairs, pictures).file

    def _is_empty(self, file: str) -> bool:
        with suppress(DataError), self._tables.open(file) as table:  # damaged: `scan` says so
            return table.is_empty
        return False

    def _is_list(self, file: str) -> bool:
        """Whether a .txt is a list of addresses, and not a licence or note: half of its first lines have an address, or
        the first line names the columns.
        """
        rows: list[Row] = []
        with suppress(DataError), self._tables.open(file) as table:  # damaged: `scan` says so
            if not self._tables.names_pictures(table):
                rows += islice(table.rows(table.names), _HEAD_LINES)
        num_addresses = sum(any(map(is_address, filter(None, row or ()))) for row in rows)
        if 2 * num_addresses < len(rows):
            say(f"ingest: {file}: left out: its first lines are not addresses; name the file to read it anyway")
            return False
        return True

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`."""

        def tell(found: str) -> None:
            if file == self.files[0]:  # the others are of the same kind, and may be ten thousand
                say(f"ingest: {file}: {found}")

        table, groups = self._parts[file]
        batches = Batches()
        pictures = PictureFiles(self._store, parent(table))
        for pairs in self._tables.rows(table, counts, tell, groups):
            add_pairs(batches, counts, pairs, self._picture(table, pairs, pictures))
            yield from batches.full()
        yield from batches.rest()

    def _picture(self, file: str, pairs: WrittenPairs, pictures: PictureFiles) -> Candidate:
        """What a row of a table has or names: the picture, an address, or a file in the table's folder."""
        if pairs.inside is not None:
            return self._inside.picture_of(file, pairs)
        written = pairs.picture
        is_file = is_file_name(written) and (is_picture_name(written) or written.startswith("file:"))
        if is_file and not is_on_web(file):
            return pictures.picture_of(file, pairs)
        address = self._resolver.resolve(written) if written else Address("", NO_PICTURE)
        problem = pairs.problem or address.problem
        return Candidate(address.url, "", None, pairs.page_url, problem, inline=None if problem else address.inline)

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: a picture in the folder of a table, or the one of a row of the table."""
        if offset is not None:
            return self._inside.read(file, offset)
        folder = next((folder for folder in self._folders if is_within(folder, file)), None)
        return None if folder is None else read_picture(self._store, file, self._max_bytes, folder)
