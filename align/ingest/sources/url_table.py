"""Tables of picture addresses and texts: parquet, CSV, TSV, JSON (lines or one array), plain lists; also gzipped.

Columns are found by their names in `ingest.columns`, whatever their case. A CSV or TSV without a header is recognised
by an address in its first line; then the columns are url, text, page_url in this order, and where the address is in
the second one (Conceptual Captions) text, url. A `.txt` has an address a line, and a text after a tab if it has one.
What cannot be read is a row with a problem; every line is one.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.sources import table_lines
from align.ingest.sources.reading import Batches
from align.pairs.urls import Resolver
from align.protocols.store import Files

_TEXT_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
_SUFFIXES = (".parquet", *_TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES))
_BATCH_ROWS = 4096

#: url, text, page_url of one row; None where the row has no such value.
Row = tuple[Any, Any, Any]


class UrlTable:
    """A source, see `align.ingest.sources.Source`. It holds no bytes: its pictures come from the web."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when no table is at the location."""
        self.files = self.inputs = files.list(location, _SUFFIXES)
        self._columns = config.columns
        self._allow_truncated = config.allow_truncated
        self._store = files

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`.

        Raises:
            DataError: a column is missing (the message says which ones there are), or the file is damaged.
        """
        batches = Batches()
        resolver = Resolver("")
        text_source = self._columns.text
        for url, text, page_url in self._rows(file, counts):
            counts["rows"] += 1
            caption = "" if text is None else str(text)
            page = None if page_url is None else str(page_url)
            source = text_source if caption.strip() else None
            written = "" if url is None else str(url).strip()
            if not written:
                counts["rows_unreadable"] += 1
                batches.candidate("", caption, source, page_url=page, problem="no address")
            else:
                address = resolver.resolve(written)
                if address.problem:
                    counts["rows_unreadable"] += 1
                batches.candidate(
                    address.url, caption, source, page_url=page, problem=address.problem, inline=address.inline
                )
            yield from batches.full()
        yield from batches.rest()

    def _rows(self, file: str, counts: Counter[str]) -> Iterator[Row]:
        name = file.lower()
        try:
            with self._store.open(file) as stream:
                if name.endswith(".parquet"):
                    yield from self._parquet(file, stream)
                    return
                lines: IO[bytes] = stream
                if name.endswith(".gz"):
                    name, lines = name.removesuffix(".gz"), cast(IO[bytes], gzip.GzipFile(fileobj=stream))
                if name.endswith((".json", ".jsonl", ".ndjson")):
                    yield from self._json(file, lines)
                else:
                    yield from self._lines(file, lines, "\t" if name.endswith((".tsv", ".txt")) else ",")
        except EOFError:
            if not self._allow_truncated:
                raise DataError(
                    f"{file}: cut off; fetch it again, or set ingest.allow_truncated to take the part before"
                ) from None
            counts["truncated_files"] += 1
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file}: unreadable ({' '.join(str(error).split())}); fetch it again") from None

    def _parquet(self, file: str, stream: IO[bytes]) -> Iterator[Row]:
        table = pq.ParquetFile(stream)
        places = self._places(file, table.schema_arrow.names)
        names = [None if place is None else table.schema_arrow.names[place] for place in places]
        for name in names:
            kind = None if name is None else table.schema_arrow.field(name).type
            if kind is not None and (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
                raise DataError(f"{file}: column '{name}' is {kind}, expected text; name another one in ingest.columns")
        for batch in table.iter_batches(_BATCH_ROWS, columns=[name for name in names if name is not None]):
            nothing = [None] * len(batch)
            columns = [nothing if name is None else batch.column(name).to_pylist() for name in names]
            yield from zip(*columns, strict=True)

    def _json(self, file: str, stream: IO[bytes]) -> Iterator[Row]:
        places: Sequence[int | None] | None = None
        names: list[str] = []
        for row in table_lines.json_rows(file, stream):
            if row is None:
                yield None, None, None
                continue
            if places is None:
                names = list(row)
                places = self._places(file, names)
            values = [None if place is None else row.get(names[place]) for place in places]
            yield values[0], values[1], values[2]

    def _lines(self, file: str, stream: IO[bytes], separator: str) -> Iterator[Row]:
        rows = table_lines.separated_rows(stream, separator)
        first = next(rows, None)
        if first is None:
            return
        plain_list = file.lower().removesuffix(".gz").endswith(".txt")
        address = next((at for at, value in enumerate(first or ()) if table_lines.is_address(value)), None)
        names = [name.strip().strip('"') for name in first or ()]
        if address is None and not (plain_list and self._columns.url.lower() not in map(str.lower, names)):
            places: Sequence[int | None] = self._places(file, names)
        else:
            places = (1, 0, None) if address == 1 else (0, 1, 2)
            yield _row(first, places)
        for row in rows:
            yield _row(row, places)

    def _places(self, file: str, names: Sequence[str]) -> tuple[int, int, int | None]:
        """Where the columns are among `names`. Raises DataError that says which ones there are."""
        lowered = [name.lower() for name in names]

        def place(key: str, column: str) -> int:
            if column in names:
                return names.index(column)
            if lowered.count(column.lower()) == 1:
                return lowered.index(column.lower())
            there = ", ".join(names[:20])
            raise DataError(f"{file}: no column '{column}', it has {there}; say which one in ingest.columns.{key}")

        page_url = self._columns.page_url
        return (
            place("url", self._columns.url),
            place("text", self._columns.text),
            None if page_url is None else place("page_url", page_url),
        )

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: a table holds no bytes."""
        return None


def _row(values: list[str] | None, places: Sequence[int | None]) -> Row:
    """None for a line that cannot be split; a short line lacks its last values."""
    url, text, page_url = (
        None if values is None or place is None or place >= len(values) else values[place] for place in places
    )
    return url, text, page_url
