"""Tables of picture addresses and texts: parquet, CSV, TSV, JSON, plain lists; also gzipped.

`ingest.columns` names the columns, in any case. A CSV or TSV with an address in its first line has no
header: its columns are url, text, page_url in this order, or text, url if the second column has the address
(Conceptual Captions). A `.txt` has one address per line, optionally followed by a tab and a text.
A list of texts in JSON or parquet gives a row for each text. Every line gives a row; a line that cannot be read gives a
row with a problem. A `.txt` in a folder is a table only if addresses begin it: others are left out, and named.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.console import say
from align.errors import DataError
from align.formats import json_tables, table_lines
from align.formats.parquet import ForeignTable, is_list
from align.ingest.limits import MAX_PAGE_CHARACTERS
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Batches
from align.ingest.sources.texts import NESTED, texts_of
from align.pairs.urls import Address, Resolver
from align.protocols.store import Files

_TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
_SUFFIXES = (".parquet", *_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES))

#: Lists of locations (`StoreFiles.list`), and of addresses.
_LISTS, _PLAIN_LISTS = (".paths", ".paths.gz"), (".txt", ".txt.gz")
#: What is looked at to tell a list of addresses from other texts.
_HEAD_BYTES, _HEAD_LINES = 1 << 16, 20
_NESTED = (dict, list)
#: Characters of a column's name in a message.
_MAX_NAME = 100

#: url, text, page_url of one row; None where the row has no such value.
TableRow = tuple[Any, Any, Any]
#: Positions of these columns in a file; None for a column that it does not have.
Positions = Sequence[int | None]


class UrlTable:
    """A source, see `align.ingest.sources.Source`. It has no bytes: its pictures come from the web."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no table."""
        listed = files.list(location, _SUFFIXES, config.paths_root)
        self._columns = config.columns
        self._allow_damaged = config.allow_damaged
        self._store = files
        if listed != [location] and not location.lower().endswith(_LISTS):
            listed = [file for file in listed if not file.lower().endswith(_PLAIN_LISTS) or self._is_list(file)]
        if not listed:
            raise DataError(f"{location}: no table exists there, and no .txt that begins with addresses")
        self.files = self.inputs = listed

    def _is_list(self, file: str) -> bool:
        """Whether a .txt is a list of addresses, and no licence or note: half of its first lines have one, or the first
        line names the columns.
        """
        try:
            with self._unpacked(file) as stream:
                head = stream.read(_HEAD_BYTES)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return True  # damaged: `scan` says so
        lines = [line for line in head.decode("utf-8-sig", "replace").splitlines() if line.strip()][:_HEAD_LINES]
        values = [line.split("\t") for line in lines]
        num_addresses = sum(any(map(table_lines.is_address, line)) for line in values)
        named = bool(values) and self._columns.url.lower() in (name.strip().strip('"').lower() for name in values[0])
        if lines and not named and 2 * num_addresses < len(lines):
            say(f"ingest: {file}: left out: its first lines are no addresses; name the file to read it all the same")
            return False
        return True

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`.

        Raises:
            DataError: a column is missing (the message lists those that exist), or the file is damaged.
        """
        batches = Batches()
        resolver = Resolver("")
        for url, value, page_url in self._rows(file, counts):
            texts, problem = ([value], None) if isinstance(value, str) else texts_of(value)
            if isinstance(url, _NESTED) or isinstance(page_url, _NESTED):
                url, texts, page_url, problem = None, [""], None, NESTED
            page = None if page_url is None else str(page_url)
            written = "" if url is None else str(url).strip()
            if len(texts) > 1:
                num_characters = sum(map(len, texts)) + len(texts) * (len(written) + len(page or ""))
                if num_characters > MAX_PAGE_CHARACTERS:
                    texts, problem = [""], f"too large: a row whose {len(texts):,} texts repeat a long address"
            address = resolver.resolve(written) if written else Address("", "no address")
            problem = problem or address.problem
            if problem:
                counts["rows_unreadable"] += len(texts)
            counts["rows"] += len(texts)
            for text in texts:
                text_source = self._columns.text if text.strip() else None
                inline = None if problem else address.inline
                batches.add(Candidate(address.url, text, text_source, page, problem, inline=inline))
                yield from batches.full()
        yield from batches.rest()

    def _rows(self, file: str, counts: Counter[str]) -> Iterator[TableRow]:
        name = file.lower()
        try:
            if name.endswith(".parquet"):
                with self._store.open(file) as stream:
                    yield from self._parquet(file, stream)
            elif name.removesuffix(".gz").endswith((".json", ".jsonl", ".ndjson")):
                yield from self._json(file)
            else:
                with self._unpacked(file) as lines:
                    yield from self._lines(
                        file, lines, "\t" if name.removesuffix(".gz").endswith((".tsv", ".txt")) else ","
                    )
        except EOFError:
            if not self._allow_damaged:
                raise DataError(
                    f"{file}: cut off; fetch it again, or set ingest.allow_damaged to take the part before"
                ) from None
            counts["damaged_files"] += 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file}: unreadable ({' '.join(str(error).split())}); fetch it again") from None

    @contextmanager
    def _unpacked(self, file: str) -> Iterator[IO[bytes]]:
        with self._store.open(file) as stream:
            yield cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if file.lower().endswith(".gz") else stream

    def _parquet(self, file: str, stream: BinaryIO) -> Iterator[TableRow]:
        table = ForeignTable(stream, file)
        positions = self._positions(file, table.schema.names)
        names = [None if position is None else table.schema.names[position] for position in positions]
        for key, name in zip(("url", "text", "page_url"), names, strict=True):
            kind = None if name is None else table.schema.field(name).type
            of_item = kind.value_type if kind is not None and key == "text" and is_list(kind) else kind
            if of_item is not None and (pa.types.is_nested(of_item) or pa.types.is_binary(of_item)):
                raise DataError(f"{file}: column '{name}' is {kind}, expected text; set another one in ingest.columns")
        for batch in table.batches([name for name in names if name is not None]):
            empty = [None] * len(batch)
            columns = [empty if name is None else _values(batch.column(name)) for name in names]
            yield from zip(*columns, strict=True)

    def _json(self, file: str) -> Iterator[TableRow]:
        opening = partial(self._unpacked, file)
        table = json_tables.find_table(file, opening)
        if table is not None:
            chosen = [None if at is None else table.names[at] for at in self._positions(file, table.names)]
            yield from cast(Iterator[TableRow], table.rows(chosen))
            return
        positions: Positions | None = None
        names: list[str] = []
        with opening() as stream:
            for row in json_tables.rows_of(file, stream):
                if row is None:
                    yield None, None, None
                    continue
                if positions is None:
                    names = list(row)
                    positions = self._positions(file, names)
                values = [None if position is None else row.get(names[position]) for position in positions]
                yield values[0], values[1], values[2]

    def _lines(self, file: str, stream: IO[bytes], separator: str) -> Iterator[TableRow]:
        rows = table_lines.separated_rows(stream, separator)
        first = next(rows, [])
        while first is None:
            yield None, None, None
            first = next(rows, [])
        if not first:
            return
        plain_list = file.lower().removesuffix(".gz").endswith(".txt")
        address = next((index for index, value in enumerate(first) if table_lines.is_address(value)), None)
        names = [name.strip().strip('"') for name in first]
        if address is None and not (plain_list and self._columns.url.lower() not in map(str.lower, names)):
            positions: Positions = self._positions(file, names)
        else:
            positions = (1, 0, None) if address == 1 else (0, 1, 2)
            yield _row(first, positions)
        for row in rows:
            yield _row(row, positions)

    def _positions(self, file: str, names: Sequence[str]) -> tuple[int, int, int | None]:
        """The positions of the columns in `names`. Raises DataError, which lists the names, where one is missing."""
        lowered = [name.lower() for name in names]

        def position(key: str, column: str) -> int:
            if column in names:
                return names.index(column)
            if lowered.count(column.lower()) == 1:
                return lowered.index(column.lower())
            present = ", ".join(name[:_MAX_NAME] for name in names[:20]) or "none"
            raise DataError(f"{file}: no column '{column}', it has {present}; set ingest.columns.{key} to one of these")

        page_url = self._columns.page_url
        return (
            position("url", self._columns.url),
            position("text", self._columns.text),
            None if page_url is None else position("page_url", page_url),
        )

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: a table has no bytes."""
        return None


def _row(values: list[str] | None, positions: Positions) -> TableRow:
    """Values are None where the line could not be split, or is too short."""
    url, text, page_url = (
        None if values is None or position is None or position >= len(values) else values[position]
        for position in positions
    )
    return url, text, page_url


def _values(column: pa.Array) -> Iterable[Any]:
    """A column's values. Of lists, one at a time is looked at: few bytes of parquet can hold millions of items."""
    return (item.values for item in column) if is_list(column.type) else column.to_pylist()
