"""decisions.parquet and facts.parquet: what was measured of each pair, put beside what was decided, shard by shard.

The engine decides over numbers (`align.filter.tables`); here the strings come back, those of images too, which a
join would spill. The files are streams in order of places, so memory is that of one shard, and the bytes are the same
whichever engine decided.
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

from align.filter.rules import codes_of
from align.filter.tables import DECISIONS, FACTS, KNOWN_IMAGES, MAX_ROWS, PAIRS
from align.pairs.text import languages

#: A row group is what must be read to find one pair.
_ROW_GROUP_SIZE = 10_000
#: Columns of a few values, or mostly null.
_DICTIONARY = ["reason", "reasons.list.element", "language", "shard", "opted_out", "status", "twin"]
#: Columns by which row groups are looked up.
_LOOKED_UP = ["key", "shard"]
_FROM_PAIRS = [name for name in PAIRS.names if name not in ("place", "image", "url", "text", "only_word")]


def write_decisions(shards: Iterable[tuple[str, Path, Path]], verdicts: Path, decided: Path, folder: Path) -> None:
    """Writes both files, and known_images.parquet (KNOWN_IMAGES), in which an image is once a shard; in order of
    places.

    Args:
        shards: (name, file of its PAIRS, file of its IMAGES), in order of places.
        verdicts: result of `tables.verdicts`.
        decided: result of `tables.decided`.
        folder: where to.
    """
    with ExitStack() as stack:
        known_images = stack.enter_context(_writer(folder / "known_images.parquet", KNOWN_IMAGES, "none"))
        facts = stack.enter_context(_writer(folder / "facts.parquet", FACTS))
        decisions = stack.enter_context(_writer(folder / "decisions.parquet", DECISIONS))
        # packing is most of the time: of each file beside the others, and beside the next shard's reading
        beside = stack.enter_context(ThreadPoolExecutor(3, thread_name_prefix="packing"))
        packing: list[Future[None]] = []
        rows = RowsInOrder(verdicts, ["place", "num_texts", "num_images", "rare_ngram", "mask"]), RowsInOrder(decided)
        for index, (name, pairs_file, images_file) in enumerate(shards):
            known = _known(*(file.below((index + 1) * MAX_ROWS) for file in rows))
            pairs = pq.ParquetFile(pairs_file, pre_buffer=False).read(_FROM_PAIRS, use_threads=False)
            pairs = _with_languages(pairs, pc.equal(known["mask"].combine_chunks(), 0))
            tables = {
                facts: _facts(name, pairs, known),
                decisions: _decisions(pairs, known["mask"].combine_chunks()),
                known_images: _images(pq.ParquetFile(images_file, pre_buffer=False).read(use_threads=False), known),
            }
            _require_packed(packing)
            packing = [beside.submit(file.write_table, table, _ROW_GROUP_SIZE) for file, table in tables.items()]
        _require_packed(packing)


def _with_languages(pairs: pa.Table, keep: pa.BooleanArray) -> pa.Table:
    """Guesses the languages of kept pairs, where no rule has asked for them; of all, it takes a quarter of the time."""
    column = pairs["language"].combine_chunks()
    missing = pc.and_(keep, pc.is_null(column))
    found = languages(pairs["normalised"].filter(missing).to_pylist())
    column = pc.replace_with_mask(column, missing, pa.array(found, pa.string()))
    return pairs.set_column(pairs.schema.get_field_index("language"), PAIRS.field("language"), column)


def _require_packed(packing: Iterable[Future[None]]) -> None:
    """Waits, and raises what packing raised: leaving the pool would keep it to itself."""
    for one in packing:
        one.result()


def _known(verdicts: pa.Table, decided: pa.Table) -> pa.Table:
    """The verdicts on a shard's pairs, and what was decided beyond them, of those pairs that it was decided of."""
    rows = decided["place"].to_numpy() % MAX_ROWS
    mask = verdicts["mask"].to_numpy().copy()
    mask[rows] = decided["mask"].to_numpy()
    where = np.full(len(verdicts), -1)
    where[rows] = np.arange(len(rows))
    further = decided.drop_columns(["place", "mask"]).take(pa.array(where, mask=where < 0))
    columns = {name: verdicts[name] for name in ("num_texts", "num_images", "rare_ngram")} | {"mask": mask}
    return pa.table(columns | {name: further[name] for name in further.column_names})


def _images(images: pa.Table, known: pa.Table) -> pa.Table:
    first_pair = pa.array(images["place"].to_numpy() % MAX_ROWS)
    decided = known.select(["nsfw_score", "num_texts"]).take(first_pair)
    columns = [decided[name] if name in decided.column_names else images[name] for name in KNOWN_IMAGES.names]
    return pa.table(columns, schema=KNOWN_IMAGES)


def _decisions(pairs: pa.Table, masks: pa.Int64Array) -> pa.Table:
    distinct = masks.dictionary_encode()
    codes = [codes_of(mask) for mask in distinct.dictionary.to_pylist()]
    columns = {
        "key": pairs["key"],
        "keep": pc.equal(masks, 0),
        "reason": pa.array([found[0] if found else None for found in codes], pa.string()).take(distinct.indices),
        "reasons": pa.array(codes, pa.list_(pa.string())).take(distinct.indices),
        "image_id": pairs["image_id"],
        "image_key": pairs["image_key"],
        "text": pairs["normalised"],
        "language": pairs["language"],
    }
    return pa.table([columns[name] for name in DECISIONS.names], schema=DECISIONS)


def _facts(shard: str, pairs: pa.Table, known: pa.Table) -> pa.Table:
    columns = {name: pairs[name] for name in pairs.column_names} | {
        name: known[name] for name in known.column_names if name not in pairs.column_names
    }
    columns["shard"] = pa.array([shard] * len(pairs), pa.string())
    for name in ("num_evaluation_sets", "twin"):  # by embedding, or else by hash
        columns[name] = pc.coalesce(known[name], pairs[name])
    return pa.table([columns[name].cast(FACTS.field(name).type) for name in FACTS.names], schema=FACTS)


class RowsInOrder:
    """A parquet file's rows, in order of places, as many at a time as asked for, and no more in memory."""

    def __init__(self, path: Path, columns: list[str] | None = None) -> None:
        file = pq.ParquetFile(path, pre_buffer=False)  # or pyarrow keeps what it has read, in the end all of it
        self._batches = file.iter_batches(columns=columns)
        self._waiting = file.schema_arrow.empty_table().select(columns or file.schema_arrow.names)

    def below(self, place: int) -> pa.Table:
        """The next rows, up to those of a place."""
        tables = [self._waiting]
        while not len(tables[-1]) or tables[-1]["place"][-1].as_py() < place:
            batch = next(self._batches, None)
            if batch is None:
                break
            tables.append(pa.Table.from_batches([batch]))
        table = pa.concat_tables(tables)
        number = int(np.searchsorted(table["place"].to_numpy(), place))
        self._waiting = table.slice(number)
        return table.slice(0, number)


@contextmanager
def _writer(path: Path, schema: pa.Schema, compression: str = "zstd") -> Iterator[pq.ParquetWriter]:
    """A file that appears when the block ends well."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    options = {"use_dictionary": _DICTIONARY, "write_statistics": _LOOKED_UP}
    with pq.ParquetWriter(beside, schema, compression=compression, **options) as writer:
        yield writer
    os.replace(beside, path)
