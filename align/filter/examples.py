"""Pairs and pictures that the report shows: for each reason a few pairs with different texts, chosen by a hash.

They come from a few shards only, spread over all, so that a page about terabytes reads little.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.filter.overview import ShownPair
from align.filter.tables import MAX_ROWS
from align.filter.words import ngram_hashes
from align.filter.work_folder import NumberedShard, Shards
from align.formats import filtered
from align.formats.evaluation_set import EvaluationSet
from align.formats.raw import iter_images, read_table
from align.pairs.text import words

_NUM_SHARDS = 8
#: Pairs per reason.
_NUM_PER_REASON = 12


@dataclass(frozen=True)
class ExamplePair:
    """A pair to show. Fields are columns of decisions, facts and data/raw, except where stated.

    Attributes:
        rare_ngram: an n-gram of the text that is not on the list of T2; None if all are.
        twin: SET/KEY of the evaluation image that it resembles.
    """

    reason: str | None
    key: str
    image_key: str | None
    text: str
    num_words: int
    num_characters: int
    width_px: int | None
    height_px: int | None
    num_texts: int
    num_images: int | None
    rare_ngram: str | None
    nsfw_score: float | None
    twin: str | None
    twin_cosine: float | None
    similarity: float | None
    language: str | None
    url: str
    error_message: str | None


@dataclass(frozen=True)
class PairExamples:
    """What the page shows.

    Attributes:
        pairs: a few pairs for each reason.
        images: image_key -> bytes, of these pairs.
        twins: SET/KEY -> (bytes, text) of the evaluation images that these pairs resemble.
    """

    pairs: list[ExamplePair]
    images: dict[str, bytes]
    twins: dict[str, tuple[bytes, str]]


def shown_shards(shards: Shards) -> Sequence[NumberedShard]:
    """A few shards, evenly spread."""
    return shards[:: max(1, len(shards) // _NUM_SHARDS)][:_NUM_SHARDS]


def shown_pairs(shards: Shards, folder: Path) -> Iterator[ShownPair]:
    """Every pair of the shown shards.

    Args:
        shards: all.
        folder: the work folder.
    """
    for _, shard in shown_shards(shards):
        rows = _rows(folder, shard.name)
        columns = (rows[name].to_pylist() for name in ("key", "text", "keep"))
        decided = {key: (text, keep) for key, text, keep in zip(*columns, strict=True)}
        for row in read_table(shard, ["key", "url", "text_source"]).to_pylist():
            yield row["url"] or "", row["text_source"], *decided[row["key"]]


def examples_of(shards: Shards, sets: Iterable[EvaluationSet], folder: Path) -> PairExamples:
    """Chooses the examples and reads all pictures of the page.

    Args:
        shards: all.
        sets: the evaluation sets.
        folder: the work folder.
    """
    shown = shown_shards(shards)
    pairs = _example_pairs(shown, folder, _NUM_PER_REASON)
    wanted = {pair.image_key for pair in pairs}
    images = {key: data for _, shard in shown for key, data in iter_images(shard) if key in wanted}
    names = {pair.twin for pair in pairs}
    twins = {}
    for one in sets:
        wanted_twins = [position for position in range(len(one.images)) if one.name_of(position) in names]
        for position, picture in one.read(wanted_twins):
            twins[one.name_of(position)] = picture, next(iter(one.images[position].texts), "")
    return PairExamples(pairs, images, twins)


def _example_pairs(shards: Shards, folder: Path, num_per_reason: int) -> list[ExamplePair]:
    """At most `num_per_reason` pairs for each reason, reason after reason, kept pairs first."""
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
            one = tables[index].slice(row, 1).to_pylist()[0] | {"row_number": index * MAX_ROWS + row}
            chosen.setdefault(index, []).append(one)
            in_order.append(one)
    rare = pq.read_table(folder / "judged/rare.parquet", columns=["row_number", "ngram_hash"])
    rare_ngrams = dict(zip(*rare.to_pydict().values(), strict=True))
    for index, shard in shards:
        raw = {row["key"]: row for row in read_table(shard, ["key", "url", "error_message"]).to_pylist()}
        for one in chosen.get(index, []):
            one |= raw[one["key"]]
            one["rare_ngram"] = _ngram(one["text"], rare_ngrams.get(one["row_number"]))
    return [ExamplePair(**{name: one[name] for name in ExamplePair.__dataclass_fields__}) for one in in_order]


def _rows(folder: Path, shard: str) -> pa.Table:
    """The rows of one shard in both tables, joined."""
    written = folder / "written" / shard
    table, more = (pq.read_table(written / f"{name}.parquet") for name in (filtered.DECISIONS, filtered.FACTS))
    for name in more.column_names:
        if name not in table.column_names:
            table = table.append_column(name, more[name])
    return table


def _ngram(text: str, ngram_hash: int | None) -> str | None:
    """The word or bigram of a text that has this hash."""
    unigrams = words(text)
    bigrams = [" ".join(pair) for pair in pairwise(unigrams)]
    word_hashes, bigram_hashes = ngram_hashes(unigrams)
    by_hash = dict(zip(bigram_hashes, bigrams, strict=True)) | dict(zip(word_hashes, unigrams, strict=True))
    return None if ngram_hash is None else by_hash.get(ngram_hash)
