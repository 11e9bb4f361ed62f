"""Reads pairs from the tables of data/raw: by key, address or picture, or one after another for take-downs.

A folder that img2dataset made lacks some columns. There, every picture is stored under the key of its own row, and its
sha256 is computed from the tar: what such a table calls sha256 is of the bytes before img2dataset resized them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.errors import DataError
from align.formats.policy import OptedOut
from align.formats.raw import SCHEMA, STATED_SHA256, RawShard, read_table
from align.formats.statuses import SUCCESS

#: A row of data/raw: column -> value.
RawRow = dict[str, Any]
#: What a take-down needs to know about each pair.
TAKE_DOWN_COLUMNS = ("key", "url", "page_url", "sha256", STATED_SHA256, "image_key", "status", "caption")


def is_opted_out(opted_out: OptedOut, row: RawRow) -> bool:
    """Whether a row with TAKE_DOWN_COLUMNS is opted out: by its addresses, its bytes, or those before resizing."""
    return opted_out.matches(row["url"], row["page_url"], row["sha256"]) or opted_out.matches(
        None, None, row[STATED_SHA256]
    )


def iter_tables(raw: Path, columns: Collection[str] = TAKE_DOWN_COLUMNS) -> Iterator[tuple[str, Iterator[RawRow]]]:
    """Yields (shard name, its rows with these columns), one batch of rows in memory at a time.

    Tars are only needed for the sha256s of a folder that img2dataset made; then a shard's rows are in memory.

    Raises:
        DataError: a table or a tar is unreadable.
    """
    for path in sorted(raw.glob("*.parquet")):
        yield path.stem, iter_rows(path, columns)


def iter_rows(path: Path, columns: Collection[str] = TAKE_DOWN_COLUMNS) -> Iterator[RawRow]:
    """The rows of one table, as `iter_tables`."""
    empty = dict.fromkeys(columns)
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # with pre-buffering, pyarrow keeps what it has read in memory
        names = file.schema_arrow.names
        if "image_key" not in names:
            yield from read_table(_shard(path), columns).to_pylist()
            return
        for batch in file.iter_batches(columns=[name for name in columns if name in names]):
            for row in batch.to_pylist():
                yield empty | row
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
        names = pq.read_schema(path).names
        hashes: dict[str, str | None] = {}
        is_ours = "image_key" in names
        if column == "sha256" and not is_ours:
            hashes = _hashes(path)
            column, values = "key", [key for key, sha256 in hashes.items() if sha256 in values]
        if column not in names or not values:
            return []
        columns = [name for name in SCHEMA.names if name in names]
        matching = pq.read_table(path, columns=columns, filters=[(column, "in", list(values))]).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}); make the folder again") from None
    rows = [dict.fromkeys(SCHEMA.names) | row | {"raw_shard": path.stem} for row in matching]
    for row in rows:
        if row["status"] == SUCCESS and (row["sha256"] is None or not is_ours):
            hashes = hashes or _hashes(path)
            row["sha256"] = hashes[row["key"]]
            row["image_key"] = row["image_key"] if is_ours else row["key"]
    return rows


def _hashes(path: Path) -> dict[str, str | None]:
    """The sha256 of each key's picture, computed from the tar where the table has none of the stored bytes."""
    table = read_table(_shard(path), ["key", "sha256"])
    return dict(zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True))


def _shard(table: Path) -> RawShard:
    return RawShard(table.stem, table, table.with_suffix(".tar"))
