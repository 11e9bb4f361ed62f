"""Writes decisions.parquet and facts.parquet: what was measured of each pair and what was decided, shard by shard.

The engine decides over numbers (`align.filter.tables`). The strings are added here, even those of images, since a join
of strings would spill. The files are written as streams in order of row numbers, so memory is that of one shard, and
the bytes are the same whichever engine decided.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.durable.files import temporary_name
from align.filter.rules import codes_of
from align.filter.tables import IMAGES, KNOWN_IMAGES, MAX_ROWS, PAIRS
from align.formats import filtered
from align.pairs.text import languages

#: Columns with few different values, or mostly null.
_DICTIONARY = ["reason", "reasons.list.element", "language", "shard", "opted_out", "status", "twin"]
#: Columns by which readers find row groups.
_WITH_STATISTICS = ["key", "shard"]
#: The images' columns that a file shows.
_OF_IMAGES = [name for name in IMAGES.names if name in KNOWN_IMAGES.names]
#: The pairs' columns that a file shows; the others are only for the SQL.
_SHOWN = [name for name in PAIRS.names if name != "row_number" and not name.endswith("_hash")]


def write_decisions(shards: Iterable[tuple[str, Path, Path]], verdicts: Path, decided: Path, folder: Path) -> None:
    """Writes both files, and known_images.parquet (KNOWN_IMAGES), all in order of row numbers.

    Args:
        shards: (name, file of its PAIRS, file of its IMAGES), in order of row numbers.
        verdicts: result of `tables.verdicts`.
        decided: result of `tables.decided`.
        folder: the folder to write to.
    """
    with ExitStack() as stack:
        known_images = stack.enter_context(_writer(folder / "known_images.parquet", KNOWN_IMAGES, "none"))
        facts = stack.enter_context(_writer(folder / filtered.FACTS, filtered.FACTS_SCHEMA))
        decisions = stack.enter_context(_writer(folder / filtered.DECISIONS, filtered.DECISIONS_SCHEMA))
        # compression takes most of the time: the three files are compressed at once, while the next shard is read
        compressors = stack.enter_context(ThreadPoolExecutor(3, thread_name_prefix="compress"))
        pending: list[Future[None]] = []
        verdict_rows = RowsInOrder(verdicts, ["row_number", "num_texts", "num_images", "rare_ngram", "mask"])
        decided_rows = RowsInOrder(decided)
        for index, (name, pairs_file, images_file) in enumerate(shards):
            end = (index + 1) * MAX_ROWS
            known = _known(verdict_rows.below(end), decided_rows.below(end))
            pairs = pq.ParquetFile(pairs_file, pre_buffer=False).read(_SHOWN, use_threads=False)
            images = pq.ParquetFile(images_file, pre_buffer=False).read(_OF_IMAGES, use_threads=False)
            pairs = _with_languages(pairs, pc.equal(known["mask"].combine_chunks(), 0))
            tables = {
                facts: _facts(name, pairs, known),
                decisions: _decisions(pairs, known["mask"].combine_chunks()),
                known_images: _images(images, known),
            }
            _wait(pending)
            pending = [
                compressors.submit(file.write_table, table, filtered.ROW_GROUP_SIZE) for file, table in tables.items()
            ]
        _wait(pending)


def _with_languages(pairs: pa.Table, keep: pa.BooleanArray) -> pa.Table:
    """Guesses the languages of kept pairs, unless a rule needed them all.

    Guessing all would take a quarter of the time.
    """
    column = pairs["language"].combine_chunks()
    missing = pc.and_(keep, pc.is_null(column))
    guessed = languages(pairs["text"].filter(missing).to_pylist())
    column = pc.replace_with_mask(column, missing, pa.array(guessed, pa.string()))
    return pairs.set_column(pairs.schema.get_field_index("language"), PAIRS.field("language"), column)


def _wait(pending: Iterable[Future[None]]) -> None:
    """Waits, and raises what a thread raised; the pool itself would ignore it."""
    for one in pending:
        one.result()


def _known(verdicts: pa.Table, decided: pa.Table) -> pa.Table:
    """The verdicts on a shard's pairs, updated by later decisions on some of these pairs."""
    rows = decided["row_number"].to_numpy() % MAX_ROWS
    mask = verdicts["mask"].to_numpy().copy()
    mask[rows] = decided["mask"].to_numpy()
    row_in_decided = np.full(len(verdicts), -1)
    row_in_decided[rows] = np.arange(len(rows))
    later = decided.drop_columns(["row_number", "mask"]).take(pa.array(row_in_decided, mask=row_in_decided < 0))
    columns = {name: verdicts[name] for name in ("num_texts", "num_images", "rare_ngram")} | {"mask": mask}
    return pa.table(columns | {name: later[name] for name in later.column_names})


def _images(images: pa.Table, known: pa.Table) -> pa.Table:
    first_pair = pa.array(images["row_number"].to_numpy() % MAX_ROWS)
    decided = known.select(["nsfw_score", "num_texts"]).take(first_pair)
    columns = [decided[name] if name in decided.column_names else images[name] for name in KNOWN_IMAGES.names]
    return pa.table(columns, schema=KNOWN_IMAGES)


def _decisions(pairs: pa.Table, masks: pa.Int64Array) -> pa.Table:
    distinct = masks.dictionary_encode()
    codes = [codes_of(mask) for mask in distinct.dictionary.to_pylist()]
    columns = {name: pairs[name] for name in ("key", "image_id", "image_key", "text", "language")}
    columns |= {
        "keep": pc.equal(masks, 0),
        "reason": pa.array([one[0] if one else None for one in codes], pa.string()).take(distinct.indices),
        "reasons": pa.array(codes, pa.list_(pa.string())).take(distinct.indices),
    }
    schema = filtered.DECISIONS_SCHEMA
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _facts(shard: str, pairs: pa.Table, known: pa.Table) -> pa.Table:
    columns = {name: known[name] for name in known.column_names} | {name: pairs[name] for name in pairs.column_names}
    columns["shard"] = pa.array([shard] * len(pairs), pa.string())
    for name in ("num_evaluation_sets", "twin"):  # by embedding, or else by hash
        columns[name] = pc.coalesce(known[name], pairs[name])
    schema = filtered.FACTS_SCHEMA
    return pa.table([columns[field.name].cast(field.type) for field in schema], schema=schema)


class RowsInOrder:
    """The rows of a parquet file that is sorted by `row_number`, read piece by piece with bounded memory."""

    def __init__(self, path: Path, columns: list[str] | None = None) -> None:
        file = pq.ParquetFile(path, pre_buffer=False)  # otherwise pyarrow keeps all that it has read
        self._batches = file.iter_batches(columns=columns)
        self._waiting = file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)

    def below(self, row_number: int) -> pa.Table:
        """The next rows, up to those with this row number."""
        tables = [self._waiting]
        while not len(tables[-1]) or tables[-1]["row_number"][-1].as_py() < row_number:
            batch = next(self._batches, None)
            if batch is None:
                break
            tables.append(pa.Table.from_batches([batch]))
        table = pa.concat_tables(tables)
        count = int(np.searchsorted(table["row_number"].to_numpy(), row_number))
        self._waiting = table.slice(count)
        return table.slice(0, count)


@contextmanager
def _writer(path: Path, schema: pa.Schema, compression: str = "zstd") -> Iterator[pq.ParquetWriter]:
    """A file that appears when the block ends without an error."""
    beside = temporary_name(path)
    options = {"use_dictionary": _DICTIONARY, "write_statistics": _WITH_STATISTICS}
    with pq.ParquetWriter(beside, schema, compression=compression, **options) as writer:
        yield writer
    os.replace(beside, path)
