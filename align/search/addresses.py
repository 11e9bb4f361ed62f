"""Where the pairs of an index were found: a join of its pairs with the tables of data/raw, which may exceed memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.config.infrastructure import EngineConfig
from align.errors import DataError
from align.formats.parquet import readable
from align.formats.raw import RawShard, raw_shards, read_table
from align.services.engine import open_engine

_PAIR = pa.schema([("key", pa.string()), ("image_id", pa.string()), ("position", pa.int64())])
_ROW = pa.schema([("key", pa.string()), ("page_url", pa.string()), ("url", pa.string()), ("sha256", pa.string())])
_FOUND = """
SELECT pairs.position, pairs.key, raw.key IS NULL OR coalesce(raw.sha256 <> pairs.image_id, false) AS is_missing,
    raw.page_url AS page_urls, raw.url AS urls
FROM pairs LEFT JOIN raw ON raw.key = pairs.key
ORDER BY pairs.position
"""


def with_addresses(
    raw: Path, images: Callable[[], Iterable[pa.Table]], scratch: Path, engine: EngineConfig
) -> Iterator[pa.Table]:
    """Yields images with `page_urls` and `urls`, parallel to their `keys`; a text is empty if there is none.

    Only web addresses of pictures count: a file's name says where somebody keeps their data. In a table of ours the
    sha256 of the picture is compared, since every ingest numbers its keys again. A table of img2dataset has keys of its
    own, and no sha256 without its tar, which may be far away.

    Args:
        raw: data/raw.
        images: reads them, some at a time, with `keys` of their pairs and `image_id`; asked twice.
        scratch: a folder for files, which is removed at the end.
        engine: bounds of the join, which DuckDB does here.

    Raises:
        DataError: a table is missing or unreadable, or lacks a pair or has one twice: the data is of another version.
        FormatError: a table lacks a column.
    """
    shards = raw_shards(raw)
    scratch.mkdir(parents=True, exist_ok=True)
    num_pairs = _write(scratch / "pairs.parquet", _PAIR, _pairs(images()))
    _write(scratch / "raw.parquet", _ROW, map(_rows, shards))
    with open_engine(engine.model_copy(update={"runner": "local"}), scratch) as sql:
        for name in ("pairs", "raw"):
            sql.view(name, scratch / f"{name}.parquet")
        sql.write(_FOUND, scratch / "found.parquet")
        sql.view("found", scratch / "found.parquet")
        [(num_found, num_missing)] = sql.rows("SELECT count(*), count(*) FILTER (is_missing) FROM found")
        if num_missing:
            [(first,)] = sql.rows("SELECT key FROM found WHERE is_missing ORDER BY position LIMIT 1")
            raise DataError(
                f"{raw}: has not {num_missing:,} of the {num_pairs:,} pairs of the shards, such as {first}: "
                "they are of different versions of the data; run `dvc repro`"
            )
    if num_found != num_pairs:
        raise DataError(f"{raw}: has {num_found - num_pairs:,} keys of the pairs twice; make the folder again")
    with pq.ParquetFile(scratch / "found.parquet") as found:
        batches = found.iter_batches(columns=["page_urls", "urls"])
        rows = chain.from_iterable(
            zip(*(column.to_pylist() for column in batch.columns), strict=True) for batch in batches
        )
        for table in images():
            ends = np.concatenate([[0], np.cumsum(pc.list_value_length(table["keys"]))])
            own = list(islice(rows, int(ends[-1])))
            for place, name in enumerate(("page_urls", "urls")):
                texts = pa.array([row[place] for row in own], pa.string())
                table = table.append_column(name, pa.ListArray.from_arrays(pa.array(ends, pa.int32()), texts))
            yield table
    shutil.rmtree(scratch)


def _write(file: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Writes tables as one file, and returns the number of rows."""
    num_rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.select(schema.names).cast(schema))
            num_rows += len(table)
    return num_rows


def _pairs(images: Iterable[pa.Table]) -> Iterator[pa.Table]:
    start = 0
    for table in images:
        keys, owners = pc.list_flatten(table["keys"]), pc.list_parent_indices(table["keys"].combine_chunks())
        position = np.arange(start, start + len(keys))
        start += len(keys)
        yield pa.table({"key": keys, "image_id": table["image_id"].take(owners), "position": position})


def _rows(shard: RawShard) -> pa.Table:
    """Keys and addresses of a table, and the sha256 of each picture: null in a table of img2dataset."""
    with readable(shard.table, "not a readable parquet file", "make the folder again"):
        is_ours = "image_key" in pq.read_schema(shard.table).names
    table = read_table(shard, ("key", "url", "page_url", *(["sha256"] if is_ours else [])))
    urls = pc.fill_null(table["url"], "")
    return pa.table({
        "key": table["key"],
        "page_url": pc.fill_null(table["page_url"], ""),
        "url": pc.if_else(pc.match_substring_regex(urls, r"(?i)^https?://"), urls, ""),
        "sha256": pc.fill_null(table["sha256"], "") if is_ours else pa.nulls(len(table), pa.string()),
    })  # fmt: skip
