"""Reads parquet files that others wrote, in bounded memory.

A parquet file of 500 bytes can hold gigabytes: one value of a megabyte, and a few bits for each row that repeats it.
Nothing in the file says so before it is read. So what a batch may allocate is bounded; where that is too little, a few
rows are read at a time, and where even these need more, the file is refused. Strings are cut before anything looks at
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.durable.memory import allocating_at_most
from align.errors import DataError
from align.pairs.text import MAX_CHARACTERS

#: Rows of a batch; fewer if the file states that rows are large ...
_ROWS_AT_ONCE = 4096
_AIM_BYTES = 32 << 20
#: ... or if such a batch allocates more than this. (Pages of 100 MB are usual, and are unpacked whole.)
_FEW_ROWS = 64
_BATCH_BYTES = 512 << 20
#: Read at once of a column of pictures: left to itself, Arrow reads the whole column of a row group.
_PICTURES_BUFFER_BYTES = 1 << 20
_MAX_BYTES_PER_CHARACTER = 4

#: What becomes of a column.
_Prepared = Callable[[pa.Array], pa.Array]


class ForeignTable:
    """A parquet file of unknown origin.

    Args:
        file: a path, or a seekable stream.
        name: of the file, for messages.

    Attributes:
        schema: its columns.
        group_rows: rows of each row group.

    Raises:
        pa.ArrowInvalid: it is not a parquet file.
    """

    def __init__(self, file: Path | BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        with _damage_is_invalid(), allocating_at_most(_BATCH_BYTES):
            self._metadata = pq.read_metadata(file)
            self.schema: pa.Schema = self._metadata.schema.to_arrow_schema()
            groups = range(self._metadata.num_row_groups)
            self.group_rows = [int(self._metadata.row_group(group).num_rows) for group in groups]

    def batches(
        self, columns: Sequence[str], groups: Iterable[int] | None = None, *, pictures: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """Yields the rows of some columns in order; strings have at most MAX_CHARACTERS, the rest is cut off.

        Bytes that are not UTF-8 become U+FFFD in strings.

        Args:
            columns: their names.
            groups: the row groups that are read; None: all.
            pictures: the columns hold pictures, of which nothing is cut off.

        Raises:
            DataError: a batch needs too much memory.
            pa.ArrowInvalid: the file is damaged.
        """
        prepared = _as_it_is if pictures else _bounded
        size = _PICTURES_BUFFER_BYTES if pictures else 0
        for group in range(len(self.group_rows)) if groups is None else groups:
            rows = self._batch_rows(group)
            num_done = 0
            try:
                for batch in self._group(group, columns, rows, prepared, size):
                    yield batch
                    num_done += len(batch)
            except MemoryError:
                yield from self._few_at_a_time(group, columns, min(rows, _FEW_ROWS), prepared, size, num_done)

    def _few_at_a_time(
        self, group: int, columns: Sequence[str], rows: int, prepared: _Prepared, size: int, num_done: int
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a row group without the first `num_done`."""
        try:
            for batch in self._group(group, columns, rows, prepared, size):
                if len(batch) > num_done:
                    yield batch.slice(num_done)
                num_done = max(0, num_done - len(batch))
        except MemoryError:
            raise DataError(
                f"{self._name}: {rows} row(s) of row group {group} need more than {_BATCH_BYTES >> 20} MiB of memory; "
                "the file is damaged or made to do harm: remove it, or write it again without such values"
            ) from None

    def _group(
        self, group: int, columns: Sequence[str], rows: int, prepared: _Prepared, size: int
    ) -> Iterator[pa.RecordBatch]:
        """The batches of a row group. Raises MemoryError if one needs more than it may."""
        with pq.ParquetFile(self._file, metadata=self._metadata, pre_buffer=False, buffer_size=size) as table:
            with _damage_is_invalid():
                batches = table.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False)
            while True:
                with _damage_is_invalid(), allocating_at_most(_BATCH_BYTES):
                    batch = next(batches, None)
                    if batch is None:
                        return
                    batch = pa.record_batch(list(map(prepared, batch.columns)), names=batch.schema.names)
                yield batch

    def _batch_rows(self, group: int) -> int:
        """Rows of a batch, by the size that the file states for all columns.

        Asked for one column whose statistics are damaged, Arrow would end the process.
        """
        stored = self._metadata.row_group(group)
        return int(max(1, min(_ROWS_AT_ONCE, stored.num_rows * _AIM_BYTES // max(1, stored.total_byte_size))))


@contextmanager
def _damage_is_invalid() -> Iterator[None]:
    """Arrow reports damage by errors of several types; here it is always ArrowInvalid."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise pa.ArrowInvalid(" ".join(str(error).split())) from error
    except OSError as error:
        if error.errno is not None:  # of the disk or the store
            raise
        raise pa.ArrowInvalid(" ".join(str(error).split())) from error


@contextmanager
def readable(path: Path | str, problem: str, remedy: str, kind: type[DataError] = DataError) -> Iterator[None]:
    """Raises one error, of a kind, for what Arrow and checks in the block raise over a file: PATH: PROBLEM; REMEDY."""
    try:
        yield
    except (pa.ArrowException, MemoryError, OSError, ValueError, TypeError, LookupError) as error:
        raise kind(f"{path}: {problem} ({' '.join(str(error).split())[:200]}); {remedy}") from None


def holds_pictures(kind: pa.DataType) -> bool:
    """Whether a column may have pictures themselves: bytes, or {bytes, path} as Hugging Face's hub stores them."""
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else pa.null()
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def picture_in(value: Any) -> bytes | None:
    """The picture in a value of such a column; None if it has none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else None


def is_list(kind: pa.DataType) -> bool:
    """Whether a column has a list in each row, in any of Arrow's layouts."""
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _as_it_is(column: pa.Array) -> pa.Array:
    return column


def _bounded(column: pa.Array) -> pa.Array:
    """The column with strings cut and valid, also those in lists; columns of other types as they are."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _bounded(column.dictionary).take(column.indices)
    if is_list(kind):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, _bounded(column.flatten()), mask=column.is_null())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.binary_slice(column, 0, MAX_CHARACTERS * _MAX_BYTES_PER_CHARACTER)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        return column
    if pa.types.is_string_view(kind):
        column = column.cast(pa.large_string())
    if (pc.max(pc.binary_length(column)).as_py() or 0) <= MAX_CHARACTERS:
        try:
            column.validate(full=True)
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            pass  # not UTF-8
    raw = pc.binary_slice(column.cast(pa.large_binary()), 0, MAX_CHARACTERS * _MAX_BYTES_PER_CHARACTER)
    texts = (None if data is None else data.decode("utf-8", "replace")[:MAX_CHARACTERS] for data in raw.to_pylist())
    return pa.array(texts, pa.string())
