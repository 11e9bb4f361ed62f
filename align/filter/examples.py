"""Pairs to show to people: for each reason some, with different texts, drawn by a hash of their keys.

From a few shards only, spread over all: a page about terabytes reads few of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import md5
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from align.filter.tables import MAX_ROWS
from align.filter.words import ngram_numbers
from align.formats.raw import RawShard, read_table
from align.pairs.text import words

T = TypeVar("T")

_NUM_SHARDS = 8


def some(items: Sequence[T]) -> list[T]:
    """A few, evenly spread."""
    return list(items[:: max(1, len(items) // _NUM_SHARDS)][:_NUM_SHARDS])


def examples(
    shards: Sequence[tuple[int, RawShard]], folder: Path, rare: Path, num_per_reason: int
) -> list[dict[str, Any]]:
    """Rows of decisions.parquet and facts.parquet, with `url`, `error_message` and the text of `rare_ngram`.

    Args:
        shards: of data/raw, with their positions in the listing.
        folder: with both files.
        rare: the n-grams that make pairs rare (columns place and ngram), at least of these shards.
        num_per_reason: rows per reason (null: kept).

    Returns:
        Reason after reason, kept pairs first, in order of the hash.
    """
    rows: list[tuple[str, bytes, int, int]] = []
    tables: dict[int, pa.Table] = {}
    for index, shard in shards:
        table = tables[index] = _rows(folder, shard.name)
        columns = zip(table["reason"].to_pylist(), table["key"].to_pylist(), strict=True)
        rows += [(reason or "", md5(key.encode()).digest(), index, row) for row, (reason, key) in enumerate(columns)]
    texts: dict[str, set[str]] = {}
    chosen: dict[int, list[dict[str, Any]]] = {}
    in_order = []
    for reason, _, index, row in sorted(rows):
        shown = texts.setdefault(reason, set())
        if len(shown) == num_per_reason:
            continue
        if (text := tables[index]["text"][row].as_py()) not in shown:
            shown.add(text)
            one = tables[index].slice(row, 1).to_pylist()[0] | {"place": index * MAX_ROWS + row}
            chosen.setdefault(index, []).append(one)
            in_order.append(one)
    ngrams = dict(zip(*pq.read_table(rare, columns=["place", "ngram"]).to_pydict().values(), strict=True))
    for index, shard in shards:
        raw = {row["key"]: row for row in read_table(shard, ["key", "url", "error_message"]).to_pylist()}
        for one in chosen.get(index, []):
            one |= raw[one["key"]]
            one["rare_ngram"] = _ngram(one["text"], ngrams.get(one.pop("place")))
    return in_order


def pairs_of(shards: Sequence[tuple[int, RawShard]], folder: Path) -> Iterator[tuple[str, str, bool]]:
    """(image URL, text, whether it is kept) of every pair of some shards; `folder` as in `examples`."""
    for _, shard in shards:
        rows = _rows(folder, shard.name)
        known = dict(zip(*(rows[name].to_pylist() for name in ("key", "text")), strict=True))
        kept = dict(zip(*(rows[name].to_pylist() for name in ("key", "keep")), strict=True))
        for row in read_table(shard, ["key", "url"]).to_pylist():
            if row["key"] in kept:  # a row group may lack a few rows of the shard beside it
                yield row["url"] or "", known[row["key"]], kept[row["key"]]


def _rows(folder: Path, shard: str) -> pa.Table:
    """The rows of one shard of both files, side by side; their row groups are alike, and few of them are read."""
    with pq.ParquetFile(folder / "facts.parquet") as facts, pq.ParquetFile(folder / "decisions.parquet") as decisions:
        column = facts.schema_arrow.get_field_index("shard")
        groups = [
            group
            for group in range(facts.num_row_groups)
            if (found := facts.metadata.row_group(group).column(column).statistics) and found.min == shard
        ]
        table, more = decisions.read_row_groups(groups), facts.read_row_groups(groups)
    for name in more.column_names:
        if name not in table.column_names:
            table = table.append_column(name, more[name])
    return table


def _ngram(text: str, number: int | None) -> str | None:
    """The unigram or bigram of a text that has a number."""
    unigrams = words(text)
    single, double = ngram_numbers(unigrams)
    for place, found in enumerate(single):
        if found == number:
            return unigrams[place]
    for place, found in enumerate(double):
        if found == number:
            return f"{unigrams[place]} {unigrams[place + 1]}"
    return None
