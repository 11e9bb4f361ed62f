"""The filter's work folder: which table of which shard is in which file, and how steps run over all shards.

`align.filter.tables` has the columns. Every file appears complete or not at all, and an existing one is not made again,
so a killed run resumes at the shard where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.display.console import track
from align.durable.files import replaced
from align.durable.memory import freed_memory_kept
from align.durable.pieces import Piece, Pieces
from align.durable.processes import in_threads
from align.filter.tables import BIGRAMS, MAX_ROWS
from align.formats import filtered
from align.formats.policy import OptedOut
from align.formats.raw import RawShard
from align.interfaces.executor import Executor, Task
from align.interfaces.store import SharedPieces

T = TypeVar("T")
#: A shard and its position in the listing of data/raw.
NumberedShard = tuple[int, RawShard]
Shards = Sequence[NumberedShard]
#: The tables that tasks write before their last one.
_BEFORE = {
    "pairs": ("images", "unigrams", "bigrams"),
    filtered.DECISIONS: (filtered.FACTS, "known_images"),
}
#: What tasks do, in words.
_WHAT = {
    "pairs": "filter: shards, images and texts",
    "scored": "filter: shards, the network",
    "similarities": "filter: shards, image-text similarity",
    filtered.DECISIONS: "filter: shards, decisions",
}
#: The tasks that read `pairs` of their shard.
_READ_PAIRS = ("scored", "similarities", filtered.DECISIONS)
#: Makes tables of all shards, one after another, in their order.
OfShards = Callable[[], Iterator[pa.Table]]

#: Tables that are shared at the same time.
_NUM_THREADS = 8
#: Freed memory is reused between shards; blocks of 32 MiB or more, such as large pictures, return to the system.
_KEPT_BYTES = 64 << 20


@contextmanager
def memory_kept(scratch: Path | None) -> Iterator[Path | None]:
    """The resource of a process: keeps freed memory."""
    with freed_memory_kept(_KEPT_BYTES):
        yield scratch


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
        """A table of a shard, with those that are written before it."""

        def path(of: str) -> str:
            return self.file(of, shard).relative_to(self.path).as_posix()

        def others() -> list[str]:
            return [path(other) for other in _BEFORE.get(table, ()) if self.has(other, shard)]

        return Piece(f"{table}-{shard}", path(table), others)

    @property
    def threads_per_worker(self) -> int:
        """Threads of one process."""
        return max(1, self.num_threads // self.num_workers)

    def file(self, table: str, shard: str) -> Path:
        """The file of a shard's table, such as `pairs`."""
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
        of_shard: tuple[str, OfShards] | None = None,
    ) -> None:
        """Makes a table of each shard that lacks it.

        Args:
            executor: does it.
            table: of the shards.
            shards: all of them.
            function: makes the table of one shard.
            reads: pieces of the whole folder that the function reads.
            of_shard: the name of a table of its shard that it reads, too, and what makes these tables here.
        """
        pieces = [self.piece(table, shard.name) for _, shard in shards]
        undone = {piece.name for piece in self.pieces.missing(pieces)}
        lacking = [item for item, piece in zip(shards, pieces, strict=True) if piece.name in undone]
        if lacking:  # otherwise processes would start without work
            for piece in reads:
                self.pieces.share(piece)
            if of_shard is not None:
                for (_, shard), part in zip(shards, of_shard[1](), strict=True):
                    commit(part, self.file(of_shard[0], shard.name))
                given = [self.piece(of_shard[0], shard.name) for _, shard in lacking]
                for _ in in_threads(self.pieces.share, given, _NUM_THREADS):
                    pass
            one = partial(_fill_one, self, table, function, tuple(reads), of_shard and of_shard[0])
            done = executor.map(Task(memory_kept, one, _table_of), lacking)
            for _ in track(done, what=_WHAT.get(table, "filter: shards, near-duplicates"), total=len(lacking)):
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
    of_shard: str | None,
    scratch: Path | None,
    item: NumberedShard,
) -> None:
    pieces, name = work.pieces.here(scratch), item[1].name
    work = replace(work, path=pieces.folder)
    tables = [*(["pairs"] if table in _READ_PAIRS else []), *([of_shard] if of_shard else [])]
    pieces.bring([*reads, *(work.piece(one, name) for one in tables)])
    pieces.make(work.piece(table, name), partial(function, work, item))


def commit(table: pa.Table, path: Path) -> None:
    """Writes a table; the file appears complete or not at all."""
    with_statistics = [name for name in ("row_number", "key") if name in table.column_names]
    # Most columns are random numbers; packing the others would cost more than it saves in reading. BIGRAMS has many
    # rows per row number.
    encoding = {"row_number": "DELTA_BINARY_PACKED"} if table.schema.equals(BIGRAMS) else None
    path.parent.mkdir(exist_ok=True)
    with replaced(path, on_disk=False) as beside:
        pq.write_table(
            table,
            beside,
            compression="none",
            use_dictionary=False,
            write_statistics=with_statistics,
            column_encoding=encoding,
        )


def write_arrays(path: Path, **arrays: Any) -> None:
    """Writes named arrays, as numpy does; the file appears complete or not at all."""
    with replaced(path, on_disk=False) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


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


def by_shard(path: Path, num_shards: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of each shard in a parquet file that is sorted by `row_number`."""
    rows = RowsInOrder(path, columns)
    return (rows.below((index + 1) * MAX_ROWS) for index in range(num_shards))
