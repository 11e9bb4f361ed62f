"""Pictures inside parquet files, as Hugging Face's hub stores them: a column of {bytes, path}, or of bytes.

A scan reads texts only. Its tasks are parts: row groups that have `ingest.shard_size` rows together. The pairs of a row
group are in one shard, so the task that writes it reads the row group once, a few rows at a time. A file that is
damaged, or needs too much memory, ends the run, as it does as an evaluation set.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.durable.files import require_utf8
from align.durable.processes import in_threads
from align.errors import DataError
from align.formats.parquet import ForeignTable, picture_in, readable
from align.ingest.limits import too_large
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.picture_files import below
from align.ingest.sources.tables import Tables, WrittenPairs
from align.interfaces.store import Files

_PARQUET = ".parquet"
_NUM_THREADS = 16
_readable = partial(readable, problem="unreadable as parquet", remedy="fetch it again")


class Part(NamedTuple):
    """Row groups of a table, one after the other; of a table without pictures inside None."""

    file: str
    groups: range | None


class PicturesInside:
    """The pictures inside the tables of a source. Can be pickled: a copy has no file open."""

    def __init__(self, config: IngestConfig, files: Files, tables: Tables, folder: str) -> None:
        """`folder`: has all tables."""
        self._files, self._tables, self._folder = files, tables, folder
        self._num_rows, self._max_bytes = config.shard_size, config.max_record_bytes
        self._open: _OpenTable | None = None

    def tasks(self, files: Sequence[str]) -> dict[str, Part]:
        """The parts of tables in order, by a name for people. Files are looked into if the first parquet file has
        pictures inside.
        """
        parquet = [file for file in files if file.lower().endswith(_PARQUET)]
        asked = parquet if parquet and self._parts_of(parquet[0]) else []
        found = dict(zip(asked, in_threads(self._parts_of, asked, _NUM_THREADS), strict=True))
        parts: dict[str, Part] = {}
        for file in files:
            some: Sequence[range | None] = found.get(file) or [None]
            for groups in some:
                of = "" if groups is None or len(some) == 1 else f" (row groups {groups.start} to {groups.stop - 1})"
                parts[file + of] = Part(file, groups)
        return parts

    def _parts_of(self, file: str) -> list[range]:
        try:
            with self._tables.open(file) as table:
                if self._tables.inside(table) is None:
                    return []
                group_rows = table.group_rows
        except DataError:  # it is damaged: the scan says so
            return []
        require_utf8(file)
        starts, num_rows = [0], 0
        for group, num in enumerate(group_rows):
            if num_rows and num_rows + num > self._num_rows:
                starts.append(group)
                num_rows = 0
            num_rows += num
        return [range(*ends) for ends in zip(starts, [*starts[1:], len(group_rows)], strict=True)]

    def picture_of(self, file: str, pairs: WrittenPairs) -> Candidate:
        """The picture of a row that has it inside, without its texts: FILE#ROW is its name."""
        assert pairs.inside is not None
        group, row = pairs.inside
        name = below(self._folder, file)
        # of a row group that is larger than a shard, some shards have a part each
        together = f"{name}#{group}/{row // self._num_rows}"
        picture = Candidate(f"{name}#{row}", "", None, pairs.page_url, pairs.problem, together=together)
        return picture if pairs.problem else picture._replace(file=file, offset=row)

    def read(self, file: str, row: int) -> bytes | None:
        """The picture of a row, see `Source.read`. Quick for rows in their order.

        Raises:
            DataError: the file is damaged, made to do harm, or no longer the one that was scanned.
            TooLarge: the picture has more than `ingest.max_record_bytes`.
        """
        with _readable(file):
            if self._open is None or self._open.file != file:
                self._close()
                self._open = _OpenTable(self._files, self._tables, file)
            picture = self._open.picture(row)
        if picture is not None and len(picture) > self._max_bytes:
            raise too_large(self._max_bytes)
        return picture

    def _close(self) -> None:
        if self._open is not None:
            self._open.stack.close()
        self._open = None

    __del__ = _close

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}


class _OpenTable:
    """A table whose pictures are read one after the other; a few rows are in memory."""

    def __init__(self, files: Files, tables: Tables, file: str) -> None:
        self.file = file
        with tables.open(file) as table:
            self._column = tables.inside(table)
        if self._column is None:
            raise _changed(file)
        with ExitStack() as stack:
            self._table = ForeignTable(stack.enter_context(files.open(file)), file)
            self.stack = stack.pop_all()
        self._starts = [0, *accumulate(self._table.group_rows)]
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._group, self._first, self._pictures = -1, 0, pa.array([], pa.binary())

    def picture(self, row: int) -> bytes | None:
        """The picture of a row."""
        group = bisect_right(self._starts, row) - 1
        if group >= len(self._table.group_rows):
            raise _changed(self.file)
        if group != self._group or row < self._first:
            self._batches = self._table.batches([str(self._column)], [group], pictures=True)
            self._group, self._first, self._pictures = group, self._starts[group], self._pictures[:0]
        while row >= self._first + len(self._pictures):
            self._first += len(self._pictures)
            self._pictures = self._pictures[:0]  # not in memory beside those that follow
            batch = next(self._batches, None)
            if batch is None:
                raise _changed(self.file)
            self._pictures = batch.column(self._column)
        return picture_in(self._pictures[row - self._first].as_py())


def _changed(file: str) -> DataError:
    return DataError(f"{file}: has fewer rows than when it was scanned; did it change? Run `align ingest` again")
