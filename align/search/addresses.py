"""Where the pairs of an index were found: their addresses in data/raw, and the rules that kept them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.errors import DataError, FormatError
from align.formats.raw import RawShard, raw_shards, read_table

#: Rows of data/raw that are compared at once. Each time, the keys of the index are hashed again.
_ROWS_AT_ONCE = 1 << 18
_COLUMNS = ("key", "url", "page_url")


@dataclass(frozen=True)
class IndexedData:
    """The data that is indexed.

    Attributes:
        shards: data/shards, with the pictures and their texts.
        raw: data/raw that they were made from; only its tables are read.
        filter_report: reports/filter, which has the rules that kept the pairs.
    """

    shards: Path
    raw: Path
    filter_report: Path


def read_addresses(raw: Path, pairs: pa.Table) -> tuple[pa.Array, pa.Array]:
    """The addresses of pairs' pages and pictures; empty if there is none.

    Only web addresses of pictures count: a file's name says where somebody keeps their data. In a table of ours the
    sha256 of the picture is compared, since every ingest numbers its keys again. A table of img2dataset has keys of its
    own, and no sha256 without its tar, which may be far away.

    Args:
        raw: data/raw.
        pairs: `key` and `image_id`.

    Returns:
        Two arrays of strings, parallel to the pairs.

    Raises:
        DataError: a table is missing or unreadable, or lacks a pair: it is of another version of the data.
        FormatError: a table lacks a column.
    """
    keys, image_ids = (pairs[name].combine_chunks() for name in ("key", "image_id"))
    rows = np.full(len(pairs), -1, np.int64)
    found: list[pa.Table] = []
    num_found = 0
    some: list[pa.Table] = []
    shards = raw_shards(raw)
    for number, shard in enumerate(shards, 1):
        some.append(_rows(shard))
        if number < len(shards) and sum(map(len, some)) < _ROWS_AT_ONCE:
            continue
        table = pa.concat_tables(some).combine_chunks()
        some.clear()
        where = pc.index_in(table["key"], value_set=keys).combine_chunks()
        table = table.filter(where.is_valid())
        at = where.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        same = pc.or_kleene(pc.is_null(hashes := table["sha256"]), pc.equal(hashes, image_ids.take(pa.array(at))))
        same = same.to_numpy()
        table, at = table.filter(pa.array(same)), at[same]
        rows[at] = num_found + np.arange(len(at))
        num_found += len(at)
        found.append(table.select(["page_url", "url"]))
    if (missing := np.flatnonzero(rows < 0)).size:
        first = keys[int(missing[0])].as_py()
        raise DataError(
            f"{raw}: has not {len(missing):,} of the {len(rows):,} pairs of the shards, such as {first}: "
            "they are of different versions of the data; run `dvc repro`"
        )
    every = pa.concat_tables(found).combine_chunks().take(pa.array(rows))
    pages, pictures = (pc.fill_null(every[name].combine_chunks(), "") for name in ("page_url", "url"))
    return pages, pc.if_else(pc.match_substring_regex(pictures, r"(?i)^https?://"), pictures, "")


def _rows(shard: RawShard) -> pa.Table:
    """Keys and addresses of a table, and the sha256 of each picture: null in a table of img2dataset."""
    try:
        names = pq.read_schema(shard.table).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard.table}: not a readable parquet file ({error}); make the folder again") from None
    if "image_key" not in names:
        table = read_table(shard, _COLUMNS)
        return table.append_column("sha256", pa.nulls(len(table), pa.string()))
    table = read_table(shard, (*_COLUMNS, "sha256"))
    column = table.column_names.index("sha256")
    return table.set_column(column, "sha256", pc.fill_null(table["sha256"], "")).select([*_COLUMNS, "sha256"])


def read_rules(filter_report: Path) -> dict[str, str | None]:
    """Code of each rule -> what it drops, as a condition; None if it was off.

    Raises:
        DataError: there is no report of the filter.
        FormatError: it has another layout.
    """
    path = filter_report / "report.json"
    try:
        return {str(row["reason"]): row["drops_where"] for row in json.loads(path.read_bytes())["funnel"]}
    except OSError:
        raise DataError(f"{path}: no such file; run `align filter` first") from None
    except (ValueError, LookupError, TypeError):
        raise FormatError(f"{path}: names no rules; run `align filter` again") from None
