"""Reads tables row by row: parquet, CSV, TSV, JSON, plain lists; also gzipped.

`ingest.columns` names the columns, in upper or lower case. A column that it does not name is found by its usual names:
the first of them that the table has. A CSV or TSV whose first line names a picture has no header: its columns are
picture, text, page in this order, or text, picture if the second column has the picture (Conceptual Captions).
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, BinaryIO, NamedTuple, cast

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.formats import json_tables, table_lines
from align.formats.parquet import ForeignTable
from align.formats.picture_table import TEXT_COLUMNS, is_text, picked, values_of
from align.ingest.sources.picture_files import is_picture_name
from align.ingest.sources.reading import count_damage
from align.ingest.sources.table_pairs import WrittenPairs, unreadable, written_pairs
from align.interfaces.store import Files

_TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
#: Endings of files that are always tables.
TABLES = (".parquet", *_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES))
#: Endings of files that are tables if they look like one.
PLAIN_LISTS = (".txt", ".txt.gz")

#: Usual names of the column of pictures' addresses; those of files and of texts are in `align.formats.picture_table`.
ADDRESSES = ("url", "image_url", "img_url", "imageurl", "link", "src")
_PICTURE, _TEXT, _PAGE = "url", "text", "page_url"
_WHAT = {_PICTURE: "pictures", _TEXT: "texts"}
#: `text_source` of a table without header.
_UNNAMED = "caption"
#: Bytes of the first line of a .txt.
_HEADER_BYTES = 1 << 16
#: Characters of a column's name in a message, and how many names it has.
_MAX_NAME, _MAX_NAMES = 100, 20

_UNREADABLE = "a line that cannot be read"
_MISCOUNTED = "another number of values than columns"
#: Positions of picture, page and each text in a file; None for a column that it does not have.
Positions = Sequence[int | None]


class NoColumnError(DataError):
    """A table lacks a column that is needed; the message lists those that it has."""


class Choice(NamedTuple):
    """What was found in a table: columns by their usual names, or how it is written.

    Attributes:
        columns: `url` or `text`, as in `ingest.columns` -> the column.
        others: columns with other usual names, which are not read.
        layout: what is not usual in the way it is written.
    """

    columns: Mapping[str, str]
    others: Sequence[str] = ()
    layout: str = ""

    def __str__(self) -> str:
        if self.layout:
            return self.layout
        found = ", ".join(f"{_WHAT[key]} from column '{name}'" for key, name in self.columns.items())
        also = f" (not from {', '.join(self.others)})" if self.others else ""
        keys = " and ".join(f"ingest.columns.{key}" for key in self.columns)
        return f"{found}{also}; for others set {keys}"


def say_nothing(choice: Choice) -> None:
    """For `Tables.rows`, if it was said before."""


class Tables:
    """The rows of the tables of a source. Can be pickled."""

    def __init__(self, config: IngestConfig, files: Files, usual: Sequence[str]) -> None:
        """`usual`: names of the column of pictures, those that come first in this kind of source first."""
        self._texts = config.columns.texts
        self._names = [(_PICTURE, config.columns.url), *((_TEXT, name) for name in self._texts or (None,))]
        self._page_url = config.columns.page_url
        self._usual = {_PICTURE: usual, _TEXT: TEXT_COLUMNS}
        self._store = files

    def has_columns(self, names: Sequence[str]) -> bool:
        """Whether these are the names of a table's columns."""
        return _found(self._names[0][1], self._usual[_PICTURE], names) is not None

    def is_separated(self, file: str) -> bool:
        """Whether a .txt is a table: its first line has a usual name for the pictures and one for the texts."""
        with self._store.open(file) as stream:
            header = stream.readline(_HEADER_BYTES)
        return self._is_header(header, ",") or self._is_header(header, "\t")

    def _is_header(self, line: bytes, separator: str) -> bool:
        names = [name.strip().strip('"') for name in line.decode("utf-8-sig", "replace").split(separator)]
        return all(_found(column, self._usual[key], names) is not None for key, column in self._names)

    def require_columns(self, file: str) -> Sequence[Choice]:
        """Reads the beginning of a table: what was found in it.

        Raises:
            NoColumnError: a column is missing.
            DataError: the table is damaged.
        """
        choices: list[Choice] = []
        next(self.rows(file, Counter(), choices.append), None)
        return choices

    def rows(self, file: str, counts: Counter[str], tell: Callable[[Choice], None]) -> Iterator[WrittenPairs]:
        """The rows of a table in order.

        Args:
            file: the table.
            counts: a file that is cut off counts as damaged.
            tell: called with what was found, if there is such.

        Raises:
            NoColumnError: a column is missing.
            DataError: the file is damaged, and not just cut off.
        """
        name = file.lower()
        try:
            if name.endswith(".parquet"):
                with self._store.open(file) as stream:
                    yield from self._parquet(file, stream, tell)
            elif name.removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson")):
                yield from self._json(file, tell)
            else:
                with self.unpacked(file) as lines:
                    yield from self._lines(file, lines, tell)
        except EOFError:
            count_damage(counts, file, "cut off")
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file}: unreadable ({' '.join(str(error).split())}); fetch it again") from None

    @contextmanager
    def unpacked(self, file: str) -> Iterator[IO[bytes]]:
        """The bytes of a file, unpacked if its name ends in .gz."""
        with self._store.open(file) as stream:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if file.lower().endswith(".gz") else stream

    def _parquet(self, file: str, stream: BinaryIO, tell: Callable[[Choice], None]) -> Iterator[WrittenPairs]:
        table = ForeignTable(stream, file)
        # a column of pictures' bytes is not one of their names
        plain = [field.name for field in table.schema if is_text(field.type, lists=True)]
        positions, sources = self._positions(file, table.schema.names, tell, plain)
        names = [None if position is None else table.schema.names[position] for position in positions]
        for number, name in enumerate(names):
            kind = None if name is None else table.schema.field(name).type
            if kind is not None and not is_text(kind, lists=number > 1):
                raise NoColumnError(
                    f"{file}: column '{name}' is {kind}, expected text; set another one in ingest.columns"
                )
        for batch in table.batches([name for name in names if name is not None]):
            empty = [None] * len(batch)
            columns = [empty if name is None else values_of(batch.column(name)) for name in names]
            picture, page, *texts = columns
            for named, some, of_page in zip(picture, zip(*texts, strict=True), page, strict=True):
                yield written_pairs(named, some, of_page, sources)

    def _json(self, file: str, tell: Callable[[Choice], None]) -> Iterator[WrittenPairs]:
        names: list[str] = []
        positions: Positions = ()
        sources: Sequence[str] = ()
        with self.unpacked(file) as stream:
            rows = json_tables.rows_of(file, stream)
            head = [*islice(rows, 100 if len(self._texts) > 1 else 1)]  # not each picture has each text
            for row in chain(head, rows):
                if row is None:
                    yield unreadable(_UNREADABLE)
                    continue
                if not positions:
                    names = [*dict.fromkeys(name for one in (row, *head) if one is not None for name in one)]
                    positions, sources = self._positions(file, names, tell)
                picture, page, *texts = (None if at is None else row.get(names[at]) for at in positions)
                yield written_pairs(picture, texts, page, sources)

    def _lines(self, file: str, stream: IO[bytes], tell: Callable[[Choice], None]) -> Iterator[WrittenPairs]:
        name = file.lower().removesuffix(".gz")
        tabs = name.endswith((".tsv", ".txt"))
        if name.endswith(".txt"):
            tabs = not self._is_header(stream.readline(_HEADER_BYTES), ",")
            stream.seek(0)
        layout = table_lines.layout_of(stream, "\t" if tabs else None)
        if found := str(layout):
            tell(Choice({}, layout=found))
        rows = table_lines.separated_rows(stream, layout)
        first = next(rows, [])
        while first is None:
            yield unreadable(_UNREADABLE)
            first = next(rows, [])
        if not first:
            return
        picture = next((index for index, value in enumerate(first) if _is_picture(value)), None)
        names = [each.strip().strip('"') for each in first]
        num_columns = None  # a list may have texts in some lines only
        if picture is None and not (name.endswith(PLAIN_LISTS) and not self.has_columns(names)):
            positions, sources = self._positions(file, names, tell)
            num_columns = len(names)
        else:
            positions = (1, None, 0) if picture == 1 else (0, 2, 1)
            sources = self._texts or (_UNNAMED,)
            if len(sources) > 1:
                raise NoColumnError(f"{file}: no header, so it has one text: name one column in ingest.columns.text")
            yield _row(first, positions, num_columns, sources)
        for row in rows:
            yield _row(row, positions, num_columns, sources)

    def _positions(
        self, file: str, names: Sequence[str], tell: Callable[[Choice], None], plain: Sequence[str] | None = None
    ) -> tuple[Positions, Sequence[str]]:
        """The positions of the columns in `names`, and what `text_source` says of each text.

        Args:
            file: for messages.
            names: of all columns.
            tell: see `rows`.
            plain: the columns whose values are texts; None: all.

        Raises:
            NoColumnError: one is missing; the message lists the names.
        """
        guessed: dict[str, str] = {}
        others: list[str] = []

        def position(key: str, column: str | None) -> int:
            usual = self._usual.get(key, ())
            found = _found(column, usual, plain or names) if column is None else None
            found = found or _found(column, usual, names)
            if found is None:
                what = f"'{column}'" if column is not None else f"with a usual name for {_WHAT[key]}"
                has_addresses = key == _PICTURE and _found(None, ADDRESSES, names) is not None
                other = ", or fetch addresses with ingest.source: url_table" if has_addresses else ""
                raise NoColumnError(
                    f"{file}: no column {what}, it has {_listed(names)}; set ingest.columns.{key} to one of these"
                    f"{other}"
                )
            if column is None:
                guessed[key] = found[:_MAX_NAME]
                others.extend(repr(name[:_MAX_NAME]) for name in names if name.lower() in usual and name != found)
            return names.index(found)

        picture, *texts = (position(key, column) for key, column in self._names)
        page = None if self._page_url is None else position(_PAGE, self._page_url)
        if guessed:
            tell(Choice(guessed, others))
        return (picture, page, *texts), self._texts or [names[text] for text in texts]


def _found(column: str | None, usual: Sequence[str], names: Sequence[str]) -> str | None:
    """The name of a column as the table has it: the one that is set, else the first of the usual ones."""
    lowered = [name.lower() for name in names]
    for wanted in usual if column is None else (column,):
        if wanted in names:
            return wanted
        if lowered.count(wanted.lower()) == 1:
            return names[lowered.index(wanted.lower())]
    return None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:_MAX_NAME] for name in names[:_MAX_NAMES]) or "none"


def _is_picture(value: str) -> bool:
    """Whether a value of a first line names a picture, so that the line is no header."""
    return table_lines.is_address(value) or is_picture_name(value)


def _row(
    values: list[str] | None, positions: Positions, num_columns: int | None, sources: Sequence[str]
) -> WrittenPairs:
    """Values are None if the line could not be split; without `num_columns`, also if it is too short."""
    if values is None:
        return unreadable(_UNREADABLE)
    if num_columns is None:
        num_columns = len(values)
        positions = [at if at is not None and at < num_columns else None for at in positions]
    row = picked(values, positions, num_columns)
    return unreadable(_MISCOUNTED) if row is None else written_pairs(row[0], row[2:], row[1], sources)
