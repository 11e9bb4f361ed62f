"""Reads a table of pictures and what is known of them: CSV, TSV, JSON, JSON lines or parquet, in bounded memory.

A row names a picture's file, and has a text, a list of texts, a class. A CSV or TSV whose first line names a picture
has no header: its columns are `picture`, `text`. A `.txt` is a TSV if its first line has a tab, else a CSV.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from align.errors import DataError
from align.formats import json_tables
from align.formats.img2dataset import IMAGE_EXTENSIONS
from align.formats.parquet import ForeignTable, is_list
from align.formats.table_lines import Layout, layout_of, separated_rows
from align.interfaces.store import Files

_JSON = (".json", ".jsonl", ".ndjson")
#: Endings of tables; all but parquet may be followed by .gz.
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", *_JSON, ".parquet")
#: Endings of pictures.
PICTURE_SUFFIXES = tuple(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))
#: Usual names of the column of pictures' files, in order ...
PICTURE_COLUMNS = (
    "file_name", "filename", "file", "file_path", "filepath", "path", "image_path", "image_file", "image_filename",
    "image_name", "image", "img", "picture", "photo",
)  # fmt: skip
#: ... and of texts; all texts of a picture are in those that come first.
TEXT_COLUMNS = (
    "texts", "captions", "sentences", "caption", "text", "sentence", "alt", "alt_text", "alttext", "description",
    "title",
)  # fmt: skip
#: ... and of classes.
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
#: Types of columns that hold texts, or numbers, which are texts as they are.
_TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_decimal, pa.types.is_boolean, pa.types.is_temporal, pa.types.is_null,
)  # fmt: skip
#: Rows of JSON lines whose keys decide which columns the table has.
_HEAD_ROWS = 100
#: Bytes of a first line.
_HEAD_BYTES = 1 << 16

#: The values of a row in the order of the columns that were asked for; None if it cannot be read.
Row = tuple[Any, ...] | None


class PictureTable:
    """A table.

    Args:
        path: its file.
        files: reads it, here or in S3, but not parquet; None: it is on this machine.

    Attributes:
        names: of its columns.
        layout: what is not usual in the way it is written; else empty.

    Raises:
        DataError: the file is missing, or is not a table.
    """

    def __init__(self, path: Path | str, files: Files | None = None) -> None:
        self._path, self._files = str(path), files
        name = self._path.rpartition("/")[2].lower()
        self._name, self._gzipped = name.removesuffix(".gz"), name.endswith(".gz")
        if files is None and not Path(path).is_file():
            raise DataError(f"{path}: no such file")
        suffixes = TABLE_SUFFIXES if files is None else TABLE_SUFFIXES[:-1]
        if not self._name.endswith(suffixes) or name.endswith(".parquet.gz"):
            raise DataError(f"{path}: no table; its name ends in one of {', '.join(suffixes)}")
        self._header: Sequence[str] | None = None
        self.layout = ""
        self.names: list[str] = list(self._read(self._names()))
        twice = next((name for name, number in Counter(self.names).items() if number > 1), None)
        if twice is not None:
            raise DataError(f"{path}: two columns have the name '{twice}'; give one of them another name")

    def rows(self, wanted: Sequence[str | None]) -> Iterator[Row]:
        """The values of some columns, row by row; None for a column that is None. Values are as the file has them.

        Raises:
            DataError: the file is damaged.
        """
        yield from self._read(self._rows(wanted))

    def _read(self, items: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from items
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataError(f"{self._path}: unreadable ({' '.join(str(error).split())}); write it again") from None

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        with Path(self._path).open("rb") if self._files is None else self._files.open(self._path) as stream:
            if not self._gzipped:
                yield stream
                return
            with gzip.open(stream) as unpacked:
                yield unpacked  # type: ignore[misc]  # reads as a stream does

    def _layout(self, stream: IO[bytes]) -> Layout:
        tabs = self._name.endswith(".tsv")
        if self._name.endswith(".txt"):
            tabs = b"\t" in stream.readline(_HEAD_BYTES)
            stream.seek(0)
        return layout_of(stream, "\t" if tabs else None)

    def _names(self) -> Iterator[str]:
        if self._name.endswith(".parquet"):
            yield from (
                field.name
                for field in ForeignTable(Path(self._path), self._path).schema
                if is_text(field.type, lists=True)
            )
        elif self._name.endswith(_JSON):
            with self._open() as stream:
                head = islice(json_tables.rows_of(self._path, stream), _HEAD_ROWS)
                yield from dict.fromkeys(name for row in head if row is not None for name in row)
        else:
            with self._open() as stream:
                layout = self._layout(stream)
                self.layout = str(layout)
                first = next(separated_rows(stream, layout), None) or []
            if any(value.strip().lower().endswith(PICTURE_SUFFIXES) for value in first):
                yield from ("picture", "text", *(f"column {number}" for number in range(3, len(first) + 1)))
            else:
                self._header = first
                yield from (name.strip() for name in first)

    def _rows(self, wanted: Sequence[str | None]) -> Iterator[Row]:
        if self._name.endswith(".parquet"):
            yield from self._parquet_rows(wanted)
        elif self._name.endswith(_JSON):
            with self._open() as stream:
                for row in json_tables.rows_of(self._path, stream):
                    yield None if row is None else tuple(None if name is None else row.get(name) for name in wanted)
        else:
            positions = [None if name is None else self.names.index(name) for name in wanted]
            with self._open() as stream:
                rows = separated_rows(stream, self._layout(stream))
                for values in islice(rows, 0 if self._header is None else 1, None):
                    yield picked(values, positions, len(self.names))

    def _parquet_rows(self, wanted: Sequence[str | None]) -> Iterator[Row]:
        table = ForeignTable(Path(self._path), self._path)
        for batch in table.batches([name for name in wanted if name is not None]):
            empty = [None] * len(batch)
            yield from zip(*(empty if name is None else values_of(batch.column(name)) for name in wanted), strict=True)


def usual_column(usual: Sequence[str], names: Sequence[str]) -> str | None:
    """The first of the usual names that a table has, in upper or lower case, as the table writes it."""
    lowered = [name.lower() for name in names]
    return next((names[lowered.index(name)] for name in usual if name in lowered), None)


def is_text(kind: pa.DataType, *, lists: bool) -> bool:
    """Whether a column of this type has texts or numbers, which are names and texts as they are; with `lists`, also
    lists of such. Bytes are neither: a column of bytes holds pictures.
    """
    if lists and is_list(kind):
        return is_text(kind.value_type, lists=False)
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type, lists=False)
    return any(check(kind) for check in _TEXT_TYPES)


def values_of(column: pa.Array) -> Iterable[Any]:
    """A column's values. Lists one at a time: few bytes of parquet can hold millions of items."""
    return (item.values for item in column) if is_list(column.type) else column.to_pylist()


def picked(values: Sequence[str] | None, positions: Sequence[int | None], num_columns: int) -> Row:
    """Some values of a line of a CSV or TSV, by their positions (None: None); None if it cannot be split, or has not
    as many values as columns: a comma in a text without quotes would cut the text off there.
    """
    if values is None or len(values) != num_columns:
        return None
    return tuple(None if position is None else values[position] for position in positions)
