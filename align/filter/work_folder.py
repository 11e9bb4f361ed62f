"""The filter's work folder: which table of which shard is in which file, and how steps run over all shards.

`align.filter.tables` has the columns. Every file appears complete or not at all, and an existing one is not made again,
so a killed run resumes at the shard where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import FilterConfig
from align.display.console import track
from align.durable.files import temporary_name
from align.durable.memory import freed_memory_kept
from align.durable.pieces import Piece, Pieces
from align.filter.tables import BIGRAMS, MAX_ROWS
from align.formats.policy import OptedOut
from align.formats.raw import RawShard
from align.interfaces.executor import Executor, Step
from align.interfaces.store import SharedPieces

T = TypeVar("T")
#: A shard and its position in the listing of data/raw.
NumberedShard = tuple[int, RawShard]
Shards = Sequence[NumberedShard]
#: The tables that the functions of steps 1, 3 and 5 write before their last one.
_BEFORE = {"pairs": ("images", "unigrams", "bigrams"), "scored": ("embeddings",), "similarities": ()}

#: Freed memory is reused between shards; blocks of 32 MiB or more, such as large pictures, return to the system.
memory_kept = partial(freed_memory_kept, 64 << 20)


@dataclass(frozen=True)
class WorkFolder:
    """The work folder of one run, and what the work on a shard needs. Can be pickled.

    Attributes:
        path: the folder.
        config: the cuts.
        opted_out: entries whose pairs are flagged.
        num_workers: processes of this machine that work on shards.
        num_threads: threads of all these processes together.
        shared: where machines share finished tables; None: nothing is shared.
        features: where measurements of evaluation images are kept between runs; None: nowhere.
    """

    path: Path
    config: FilterConfig
    opted_out: OptedOut
    num_workers: int
    num_threads: int
    shared: SharedPieces | None = None
    features: Path | None = None

    @property
    def pieces(self) -> Pieces:
        """The pieces of the folder."""
        return Pieces(self.path, self.shared)

    def piece(self, table: str, shard: str) -> Piece:
        """`pairs`, `scored` or `similarities` of a shard, with the tables that are written before it."""

        def path(of: str) -> str:
            return self.file(of, shard).relative_to(self.path).as_posix()

        def others() -> list[str]:
            return [path(other) for other in _BEFORE[table] if self.has(other, shard)]

        return Piece(f"{table}-{shard}", path(table), others)

    @property
    def threads_per_worker(self) -> int:
        """Threads of one process."""
        return max(1, self.num_threads // self.num_workers)

    def file(self, table: str, shard: str) -> Path:
        """The file of a shard's `pairs`, `images`, `unigrams`, `bigrams`, `scored`, `embeddings` or `similarities`."""
        return self.path / table / f"{shard}.{'arrow' if table == 'embeddings' else 'parquet'}"

    def has(self, table: str, shard: str) -> bool:
        """Whether a table of a shard is complete."""
        return self.file(table, shard).exists()

    def fill(
        self,
        executor: Executor,
        table: str,
        shards: Shards,
        function: Callable[[WorkFolder, NumberedShard], None],
        *,
        reads: Sequence[Piece] = (),
    ) -> None:
        """Makes `pairs`, `scored` or `similarities` of each shard that lacks it.

        Args:
            executor: does it.
            table: of the shards.
            shards: all of them.
            function: makes the table of one shard.
            reads: pieces of the whole folder that the function reads, besides `pairs` of its shard.
        """
        pieces = [self.piece(table, shard.name) for _, shard in shards]
        undone = {piece.name for piece in self.pieces.missing(pieces)}
        lacking = [item for item, piece in zip(shards, pieces, strict=True) if piece.name in undone]
        if lacking:  # otherwise processes would start without work
            for piece in reads:
                self.pieces.share(piece)
            one = partial(_fill_one, self, table, function, tuple(reads))
            done = executor.map(Step(memory_kept, one, _table_of), lacking)
            what = {
                "pairs": "filter: shards, images and texts",
                "scored": "filter: shards, the network",
                "similarities": "filter: shards, image-text similarity",
            }[table]
            for _ in track(done, what=what, total=len(lacking)):
                pass
        self.pieces.bring(pieces)

    def tracked(self, pictures: Iterator[T], total: int) -> Iterator[T]:
        """Shows progress per picture if one process does all the work; several processes show it per shard."""
        return track(pictures, what="filter: images", total=total) if self.num_workers == 1 else pictures


def _table_of(item: NumberedShard) -> str:
    return str(item[1].table)


def _fill_one(
    work: WorkFolder,
    table: str,
    function: Callable[[WorkFolder, NumberedShard], None],
    reads: Sequence[Piece],
    _: None,
    item: NumberedShard,
) -> None:
    pieces, name = work.pieces.here(), item[1].name
    work = replace(work, path=pieces.folder)
    pieces.bring([*reads, *([] if table == "pairs" else [work.piece("pairs", name)])])
    pieces.make(work.piece(table, name), partial(function, work, item))


def commit(table: pa.Table, path: Path) -> None:
    """Writes a table; the file appears complete or not at all."""
    path.parent.mkdir(exist_ok=True)
    beside = temporary_name(path)
    with_statistics = [name for name in ("row_number", "key") if name in table.column_names]
    # Most columns are random numbers; packing the others would cost more than it saves in reading. BIGRAMS has many
    # rows per row number.
    encoding = {"row_number": "DELTA_BINARY_PACKED"} if table.schema.equals(BIGRAMS) else None
    pq.write_table(
        table,
        beside,
        compression="none",
        use_dictionary=False,
        write_statistics=with_statistics,
        column_encoding=encoding,
    )
    os.replace(beside, path)


def row_numbers_of(index: int, file: Path) -> NDArray[np.int64]:
    """The row numbers of a shard in a file (column `row_number`, in order); only the shard's part of it is read."""
    low = index * MAX_ROWS
    filters = [("row_number", ">=", low), ("row_number", "<", low + MAX_ROWS)]
    return np.asarray(pq.read_table(file, columns=["row_number"], filters=filters)["row_number"].to_numpy())


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
