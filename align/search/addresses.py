"""Where the pairs of an index were found: a merge of its pairs with the tables of data/raw, whose keys ascend.

The pairs are divided by their keys among groups of tables, and what a group has of them is divided by their positions.
So each table is read once and compared with the pairs of its own range of keys, and memory holds one part.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.parquet import readable
from align.formats.raw import RawShard, raw_shards, read_table

#: Pairs of a part, which take some 200 bytes each. Its files are open together: 450 at 1.8 billion pairs.
_PAIRS_OF_PART = 1 << 22
#: Rows of data/raw, or of the result, that are in hand at once.
_ROWS_AT_ONCE = 1 << 18
_COLUMNS = ("key", "url", "page_url")
_PAIR = pa.schema([("key", pa.large_string()), ("image_id", pa.large_string()), ("position", pa.int64())])
_FOUND = pa.schema([("position", pa.int64()), ("page_urls", pa.large_string()), ("urls", pa.large_string())])
_RESULT = pa.schema([("page_urls", pa.string()), ("urls", pa.string())])


def find_addresses(raw: Path, pairs: Iterable[pa.Table], num_pairs: int, scratch: Path) -> Iterator[pa.Table]:
    """Yields `page_urls` and `urls` of all pairs in their order, some at a time; a text is empty if there is none.

    Only web addresses of pictures count: a file's name says where somebody keeps their data. In a table of ours the
    sha256 of the picture is compared, since every ingest numbers its keys again. A table of img2dataset has keys of its
    own, and no sha256 without its tar, which may be far away.

    Args:
        raw: data/raw.
        pairs: `key` and `image_id`, some at a time.
        num_pairs: how many they are.
        scratch: a folder for files, which need not exist.

    Raises:
        DataError: a table is missing or unreadable, or lacks a pair: it is of another version of the data.
        FormatError: a table lacks a column.
    """
    shards = raw_shards(raw)
    num_parts = -(-num_pairs // _PAIRS_OF_PART) or 1
    size = -(-len(shards) // num_parts)
    groups = [("", shards)]
    if num_parts > 1:
        groups = [
            (key, shards[first : first + size])
            for first in range(0, len(shards), size)
            if (key := _first_key(shards[first : first + size])) is not None
        ]
    edges = np.array([key for key, _ in groups[1:]], object)
    wanted = _Parts(scratch / "wanted", _PAIR, len(groups))
    start = 0
    for table in pairs:
        table = table.append_column("position", pa.array(np.arange(start, start + len(table))))
        wanted.add(table, np.searchsorted(edges, table["key"].to_numpy(), side="right"))
        start += len(table)
    wanted.close()
    found = _Parts(scratch / "found", _FOUND, num_parts)
    missing = [_match(wanted.read(number), group, found) for number, (_, group) in enumerate(groups)]
    found.close()
    if num_missing := sum(number for number, _ in missing):
        _, first = min(one for number, one in missing if number)
        raise DataError(
            f"{raw}: has not {num_missing:,} of the {num_pairs:,} pairs of the shards, such as {first}: "
            "they are of different versions of the data; run `dvc repro`"
        )
    for number in range(num_parts):
        part = found.read(number).sort_by("position").select(_RESULT.names)
        for first_row in range(0, len(part), _ROWS_AT_ONCE):
            yield part.slice(first_row, _ROWS_AT_ONCE).cast(_RESULT)


def _first_key(shards: Sequence[RawShard]) -> str | None:
    """The first key of some tables; None if they have no rows."""
    for shard in shards:
        keys = read_table(shard, ("key",))["key"]
        if len(keys):
            return str(keys[0])
    return None


def _match(wanted: pa.Table, shards: Sequence[RawShard], found: _Parts) -> tuple[int, tuple[int, str]]:
    """Writes what these tables have of the wanted pairs; returns how many they lack, and the first's place and key."""
    wanted = wanted.sort_by("key").combine_chunks()
    keys = wanted["key"]
    is_found = np.zeros(len(wanted), np.bool_)
    some: list[pa.Table] = []
    for number, shard in enumerate(shards, 1):
        some.append(_rows(shard))
        if number < len(shards) and sum(map(len, some)) < _ROWS_AT_ONCE:
            continue
        table = pa.concat_tables(some).combine_chunks()
        some.clear()
        if not len(table):
            continue
        low, high = pc.min_max(table["key"]).as_py().values()
        begin = bisect_left(range(len(keys)), low, key=lambda row: keys[row].as_py())
        end = bisect_right(range(len(keys)), high, key=lambda row: keys[row].as_py())
        near = wanted.slice(begin, end - begin).combine_chunks()
        of_table = table["key"].cast(pa.large_string())
        where = pc.index_in(of_table, value_set=near["key"].combine_chunks()).combine_chunks()
        table = table.filter(where.is_valid())
        at = where.drop_null().to_numpy(zero_copy_only=False).astype(np.int64)
        same = pc.or_kleene(pc.is_null(table["sha256"]), pc.equal(table["sha256"], near["image_id"].take(pa.array(at))))
        table, at = table.filter(same), at[same.to_numpy()]
        at, first = np.unique(at, return_index=True)
        table, is_new = table.take(pa.array(first)), ~is_found[begin + at]
        table, at = table.filter(pa.array(is_new)), at[is_new]
        is_found[begin + at] = True
        positions = near["position"].to_numpy()[at]
        pages, pictures = (pc.fill_null(table[name], "") for name in ("page_url", "url"))
        pictures = pc.if_else(pc.match_substring_regex(pictures, r"(?i)^https?://"), pictures, "")
        found.add(pa.table([pa.array(positions), pages, pictures], names=_FOUND.names), positions // _PAIRS_OF_PART)
    lacking = wanted.filter(pa.array(~is_found)).sort_by("position").slice(0, 1).to_pylist()
    return int(np.count_nonzero(~is_found)), (lacking[0]["position"], lacking[0]["key"]) if lacking else (0, "")


def _rows(shard: RawShard) -> pa.Table:
    """Keys and addresses of a table, and the sha256 of each picture: null in a table of img2dataset."""
    with readable(shard.table, "not a readable parquet file", "make the folder again"):
        names = pq.read_schema(shard.table).names
    if "image_key" not in names:
        table = read_table(shard, _COLUMNS)
        return table.append_column("sha256", pa.nulls(len(table), pa.string()))
    table = read_table(shard, (*_COLUMNS, "sha256"))
    column = table.column_names.index("sha256")
    return table.set_column(column, "sha256", pc.fill_null(table["sha256"], "")).select([*_COLUMNS, "sha256"])


class _Parts:
    """Rows that are divided among files, of which one at a time is read again."""

    def __init__(self, folder: Path, schema: pa.Schema, number: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._schema, self._files = schema, [folder / f"{part}.arrow" for part in range(number)]
        self._writers = [pa.ipc.new_stream(str(file), schema) for file in self._files]

    def add(self, table: pa.Table, parts: NDArray[np.int64]) -> None:
        """Adds each row to its part."""
        numbers, counts = np.unique(parts, return_counts=True)
        rows = table.cast(self._schema).take(pa.array(np.argsort(parts, kind="stable")))
        for part, count, end in zip(numbers.tolist(), counts.tolist(), np.cumsum(counts).tolist(), strict=True):
            self._writers[part].write_table(rows.slice(end - count, count))

    def close(self) -> None:
        """Ends the files; then they can be read."""
        for writer in self._writers:
            writer.close()

    def read(self, part: int) -> pa.Table:
        """The rows of a part, which is removed."""
        with self._files[part].open("rb") as file:
            table = pa.ipc.open_stream(file).read_all()
        self._files[part].unlink()
        return table
