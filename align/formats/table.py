"""Reads any table of pictures in bounded memory: CSV, TSV, JSON, JSON lines, plain lists (`.txt`), parquet.

All but parquet may be gzipped. This is the one reader of the tables that ingest, catalogues and evaluation sets are
given. A row names a picture, by its address or file, and has a text, a list of texts, a class.

A table whose first line names a picture has no header: its columns are `picture`, `text`, `page`, or `text`, `picture`
if the second value names it (Conceptual Captions). The first line of a `.txt` is a header only if it has a usual name
of a column. Tabs separate the values of a `.txt`, or else what separates such a header, or a picture's file and text.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from align.errors import DataError
from align.formats.img2dataset import IMAGE_EXTENSIONS
from align.formats.parquet import ForeignTable, holds_pictures, is_list
from align.formats.table_rows import Layout, json_rows, layout_of, separated_rows
from align.pairs.text import MAX_CHARACTERS

_JSON = (".json", ".jsonl", ".ndjson")
_TEXT = (".csv", ".tsv", *_JSON)
#: Endings of files that are always tables ...
TABLES = (".parquet", *_TEXT, *(f"{suffix}.gz" for suffix in _TEXT))
#: ... and of those that are tables if they look like one.
PLAIN_LISTS = (".txt", ".txt.gz")
#: Endings of pictures.
PICTURE_SUFFIXES = tuple(f".{extension}" for extension in sorted(IMAGE_EXTENSIONS))
#: Usual names of the column of pictures' addresses ...
ADDRESS_COLUMNS = ("url", "image_url", "img_url", "imageurl", "link", "src")
#: ... of their files, in order ...
PICTURE_COLUMNS = (
    "file_name", "filename", "file", "file_path", "filepath", "path", "image_path", "image_file", "image_filename",
    "image_name", "image", "img", "picture", "photo",
)  # fmt: skip
#: ... of the pictures themselves, in parquet ...
INSIDE_COLUMNS = ("image", "images", "picture", "pictures", "img", "photo", "image_bytes", "jpg", "jpeg", "png", "webp")
#: ... of texts; all texts of a picture are in those that come first ...
TEXT_COLUMNS = (
    "texts", "captions", "sentences", "caption", "text", "sentence", "alt", "alt_text", "alttext", "description",
    "title",
)  # fmt: skip
#: ... and of classes.
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
_USUAL = frozenset((*ADDRESS_COLUMNS, *PICTURE_COLUMNS, *TEXT_COLUMNS, *LABEL_COLUMNS))
#: Types of columns that hold texts, or numbers, which are texts as they are.
_TEXT_TYPES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_integer, pa.types.is_floating,
    pa.types.is_decimal, pa.types.is_boolean, pa.types.is_temporal, pa.types.is_null,
)  # fmt: skip
_ADDRESS = re.compile(r"\s*\"?(?:(?:https?:)?//|data:)\S", re.IGNORECASE)
#: Rows of JSON whose keys are the columns: not each has each of them.
_HEAD_ROWS = 100
#: Characters of a column's name in a message, and how many names it has.
_MAX_NAME, _MAX_NAMES = 100, 20

#: The values of a row in the order of the columns that were asked for; None if it cannot be read.
Row = tuple[Any, ...] | None


class NoColumnError(DataError):
    """A table lacks a column that is needed; the message lists those that it has."""


class CutOffError(DataError):
    """A table ends too early; the rows before that were read."""


class Table:
    """A table.

    Args:
        stream: seekable; the caller closes it.
        name: of the file: its ending says how it is written, and messages name it.
        columns: that the caller will ask for besides those of usual names; a header of a `.txt` may have these.

    Attributes:
        names: of its columns that hold texts, numbers, or lists of these; a list without header may have more.
        has_header: whether it has these names itself.
        is_empty: it has no row that can be read, but perhaps names of columns.
        first_row: the number of the first one, as spreadsheets count: a line of names is a row, too.
        layout: what is not usual in the way it is written; else empty.
        pictures: columns of parquet that have the pictures themselves.
        group_rows: rows of each row group of parquet.

    Raises:
        CutOffError: it ends before its first row.
        DataError: it is no table.
    """

    def __init__(self, stream: BinaryIO, name: str, columns: Iterable[str] = ()) -> None:
        self._name, self._stream = name, cast(IO[bytes], stream)
        kind = name.lower()
        if not kind.endswith((*TABLES, *PLAIN_LISTS)):
            raise DataError(f"{name}: no table; its name ends in one of {', '.join((*_TEXT, '.txt', '.parquet'))}")
        if kind.endswith(".gz"):
            kind = kind.removesuffix(".gz")
            self._stream = cast(IO[bytes], gzip.GzipFile(fileobj=stream))
        self.names: list[str] = []
        self.has_header, self.is_empty, self.layout, self.first_row = True, True, "", 1
        self._all_names: list[str] = []
        self._no_texts: dict[str, pa.DataType] = {}
        self.pictures: list[str] = []
        self.group_rows: list[int] = []
        self._rows: Callable[[Sequence[str | None]], Iterator[Row]]
        self._rows_of_group: Callable[[Sequence[str | None], int], Iterator[Row]]
        with self._damage_is_one_line():
            if kind.endswith(".parquet"):
                self._begin_parquet(stream)
            elif kind.endswith(_JSON):
                self._begin_json()
            else:
                self._begin_lines(kind, columns)

    def column(self, what: str, chosen: str | None, usual: Sequence[str], setting: str, *, lists: bool = False) -> str:
        """The name of a column, as the table has it.

        Args:
            what: it holds, for messages.
            chosen: its name, in upper or lower case; None: it has a usual one.
            usual: names; the first that the table has counts.
            setting: that chooses another one.
            lists: whether lists of texts are fine, too.

        Raises:
            NoColumnError: there is none, or it does not hold texts, or two have its name.
        """
        wanted = usual if chosen is None else (chosen,)
        found = find_column(wanted, self.names) or find_column(wanted, self._all_names)
        if found is None:
            if not self._all_names:
                raise NoColumnError(f"{self._name}: the table is empty")
            known = ", ".join(name[:_MAX_NAME] for name in self._all_names[:_MAX_NAMES]) or "none"
            which = f"'{chosen}'" if chosen is not None else f"with a usual name for {what}"
            raise NoColumnError(f"{self._name}: no column {which}, it has {known}; set {setting} to one of these")
        kind = self._no_texts.get(found)
        if kind is not None and not (lists and found in self.names):
            raise NoColumnError(f"{self._name}: column '{found}' is {kind}, expected text; set another in {setting}")
        self._require_one([found])
        return found

    def rows(self, wanted: Sequence[str | None], group: int | None = None) -> Iterator[Row]:
        """The values of some columns, row by row; None for a column that is None. Values are as the file has them.

        With `group`, only those of this row group of parquet.

        Those of parquet are Arrow's arrays where they are lists: few bytes can hold millions of items. Raises
        CutOffError if the file ends too early; NoColumnError if two columns have a name that is wanted; DataError if
        the file is damaged.
        """
        self._require_one(wanted)
        with self._damage_is_one_line():
            self._stream.seek(0)
            yield from self._rows(wanted) if group is None else self._rows_of_group(wanted, group)

    def _require_one(self, wanted: Sequence[str | None]) -> None:
        numbers = Counter[str | None](self._all_names)
        if twice := [name for name in wanted if numbers[name] > 1]:
            raise NoColumnError(f"{self._name}: two columns have the name '{twice[0]}'; give one of them another name")

    @contextmanager
    def _damage_is_one_line(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            raise CutOffError(f"{self._name}: unreadable (cut off); fetch or write it again") from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, gzip.BadGzipFile, zlib.error) as error:
            why = " ".join(str(error).split())
            raise DataError(f"{self._name}: unreadable ({why}); fetch or write it again") from None

    def _begin_parquet(self, stream: BinaryIO) -> None:
        table = ForeignTable(stream, self._name)
        self._all_names, self.is_empty = table.schema.names, False
        self.names = [field.name for field in table.schema if is_text(field.type, lists=True)]
        self._no_texts = {field.name: field.type for field in table.schema if not is_text(field.type, lists=False)}
        self.pictures = [field.name for field in table.schema if holds_pictures(field.type)]
        self.group_rows = table.group_rows

        def rows(wanted: Sequence[str | None], group: int | None = None) -> Iterator[Row]:
            groups = None if group is None else [group]
            for batch in table.batches([name for name in wanted if name is not None], groups):
                empty = [None] * len(batch)
                columns = (empty if name is None else _values_of(batch.column(name)) for name in wanted)
                yield from zip(*columns, strict=True)

        self._rows = self._rows_of_group = rows

    def _begin_json(self) -> None:
        names: dict[str, None] = {}
        try:
            for number, row in enumerate(json_rows(self._stream, self._name), 1):
                names.update(dict.fromkeys(row or ()))
                self.is_empty = self.is_empty and row is None
                if number >= _HEAD_ROWS and not self.is_empty:
                    break
        except EOFError:
            if self.is_empty:
                raise
        self._all_names = self.names = [*names]

        def rows(wanted: Sequence[str | None]) -> Iterator[Row]:
            for row in json_rows(self._stream, self._name):
                yield None if row is None else tuple(None if name is None else row.get(name) for name in wanted)

        self._rows = rows

    def _begin_lines(self, kind: str, columns: Iterable[str]) -> None:
        is_plain = kind.endswith(".txt")
        usual = _USUAL.union(column.lower() for column in columns)

        def has_usual(names: Iterable[str]) -> bool:
            return not usual.isdisjoint(name.lower() for name in names)

        def begun(*, tabs: bool) -> tuple[Layout, list[str]]:
            self._stream.seek(0)
            layout = layout_of(self._stream, tabs=tabs)
            rows = (row for row in separated_rows(self._stream, layout) if row is not None)
            first, self.is_empty = next(rows, []), next(rows, None) is None
            return layout, first

        def names_of(values: Iterable[str]) -> list[str]:
            return [value.strip().strip('"') for value in values]

        layout, first = begun(tabs=kind.endswith((".tsv", ".txt")))
        if is_plain and len(first) == 1 and not is_address(first[0]):
            parts = names_of(re.split("[,;|]", first[0]))
            if len(parts) > 1 and (is_picture_name(parts[0]) or has_usual(parts)):
                layout, first = begun(tabs=False)
        self.layout = str(layout)
        order = names_of(first)
        if any(map(_names_picture, first)) or (is_plain and not has_usual(order)):
            self.has_header, self.is_empty = False, not first
            is_second = any(map(_names_picture, first[1:2])) and not _names_picture(first[0])
            order = ["text", "picture"] if is_second else ["picture", "text", "page"]
            order += [f"column {number}" for number in range(len(order) + 1, len(first) + 1)]
        # without a header, some lines may have no text
        most = len(first) if self.has_header else max(2, len(first))
        least = most if self.has_header else 1
        self.first_row = 2 if self.has_header else 1
        self._all_names = self.names = order[:most]

        def rows(wanted: Sequence[str | None]) -> Iterator[Row]:
            known: dict[str | None, int] = {name: at for at, name in enumerate(order)}
            places = [known.get(name) for name in wanted]
            is_header = self.has_header
            is_strict = is_header or layout.quoted  # a comma in a text without quotes would cut the text off there
            for values in separated_rows(self._stream, layout):
                if values is not None and is_header:
                    is_header = False
                elif values is None or len(values) < least or (len(values) > most and is_strict):
                    yield None
                else:
                    yield tuple(None if at is None or at >= len(values) else values[at] for at in places)

        self._rows = rows


def find_column(wanted: Iterable[str], names: Sequence[str]) -> str | None:
    """The first of some names that a table has, as it writes it; in upper or lower case, if that is clear."""
    lowered = [name.lower() for name in names]
    for name in wanted:
        if name in names:
            return name
        if lowered.count(name.lower()) == 1:
            return names[lowered.index(name.lower())]
    return None


def is_text(kind: pa.DataType, *, lists: bool) -> bool:
    """Whether a column of this type has texts or numbers, which are names and texts as they are; with `lists`, also
    lists of such. Bytes are neither: a column of bytes holds pictures.
    """
    if (lists and is_list(kind)) or pa.types.is_dictionary(kind):
        return is_text(kind.value_type, lists=False)
    return any(check(kind) for check in _TEXT_TYPES)


def is_address(value: str) -> bool:
    """Whether a value looks like a picture's absolute address."""
    return _ADDRESS.match(value) is not None


def is_picture_name(name: str) -> bool:
    """Whether a name ends as pictures' names do."""
    stem, dot, extension = name.strip()[:MAX_CHARACTERS].rpartition(".")
    return bool(stem and dot) and extension.lower() in IMAGE_EXTENSIONS


def _names_picture(value: str) -> bool:
    """Whether a value of a first line names a picture, so that the line is no header."""
    return is_address(value) or is_picture_name(value)


def _values_of(column: pa.Array) -> Iterable[Any]:
    """A column's values. Lists one at a time: few bytes of parquet can hold millions of items."""
    return (item.values for item in column) if is_list(column.type) else column.to_pylist()
