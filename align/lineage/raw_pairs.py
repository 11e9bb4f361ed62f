"""Reads pairs from the tables of data/raw: by key, address or picture, or one after another for take-downs.

A folder that img2dataset made lacks some columns. There, every picture is stored under the key of its own row, and a
missing sha256 is computed from the tar.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.raw import SCHEMA, SUCCESS, RawShard, read_table

#: A row of data/raw: column -> value.
RawRow = dict[str, Any]
#: What a take-down needs to know about each pair.
TAKE_DOWN_COLUMNS = ("key", "url", "page_url", "sha256", "image_key", "status", "caption")


def iter_tables(raw: Path) -> Iterator[tuple[str, Iterator[RawRow]]]:
    """Yields (shard name, its rows with TAKE_DOWN_COLUMNS), one batch of rows in memory at a time. Tars are not needed.

    Raises:
        DataError: a table is unreadable.
    """
    for path in sorted(raw.glob("*.parquet")):
        yield path.stem, _iter_rows(path)


def _iter_rows(path: Path) -> Iterator[RawRow]:
    empty = dict.fromkeys(TAKE_DOWN_COLUMNS)
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # with pre-buffering, pyarrow keeps what it has read in memory
        columns = [name for name in TAKE_DOWN_COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                yield empty | _with_image_key(row)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); make the folder again") from None


def find_pairs(raw: Path, column: str, values: Collection[str]) -> Iterator[RawRow]:
    """Yields the rows whose `column` has one of the values: the columns of `SCHEMA`, and `raw_shard`, the shard's name.

    Raises:
        DataError: a table or a tar is unreadable.
    """
    tables = sorted(raw.glob("*.parquet"))
    missing = set(values)
    if column == "key":  # a key begins with the name of its shard, so those tables are read first
        lengths = {len(path.stem) for path in tables}
        prefixes = {key[:length] for key in missing for length in lengths}
        tables.sort(key=lambda path: path.stem not in prefixes)
    for path in tables:
        if column == "key" and not missing:
            return
        for row in _matching(path, column, missing):
            if column == "key":
                missing.discard(row["key"])
            yield row


def _matching(path: Path, column: str, values: Collection[str]) -> list[RawRow]:
    try:
        columns = [name for name in SCHEMA.names if name in pq.read_schema(path).names]
        if column not in columns or not values:
            return []
        matching = pq.read_table(path, columns=columns, filters=[(column, "in", list(values))]).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); make the folder again") from None
    rows = [dict.fromkeys(SCHEMA.names) | _with_image_key(row) | {"raw_shard": path.stem} for row in matching]
    without_hash = [row for row in rows if row["sha256"] is None and row["status"] == SUCCESS]
    if without_hash:
        shard = RawShard(path.stem, path, path.with_suffix(".tar"))
        hashes = {row["key"]: row["sha256"] for row in read_table(shard, ["key", "sha256"]).to_pylist()}
        for row in without_hash:
            row["sha256"] = hashes[row["key"]]
    return rows


def _with_image_key(row: RawRow) -> RawRow:
    if "image_key" in row:
        return row
    return row | {"image_key": row["key"] if row["status"] == SUCCESS else None}
