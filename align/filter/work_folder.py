"""The filter's work folder: which table of which shard is in which file, and how steps run over all shards.

`align.filter.tables` has the columns. Every file appears complete or not at all, and an existing one is not made again,
so a killed run resumes at the shard where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from align.durable.processes import in_processes
from align.durable.work import missing
from align.filter.tables import BIGRAMS, MAX_ROWS
from align.formats.policy import OptedOut
from align.formats.raw import RawShard
from align.interfaces.store import SharedPieces
from align.pieces import Outcome, Piece, Pieces, last_those_of_others

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
        num_workers: processes that work on shards.
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
        """How the processes that share the work make its pieces."""
        return Pieces(self.path, self.shared)

    def finished(self) -> frozenset[str]:
        """The complete pieces of all machines; empty if nothing is shared."""
        return self.shared.finished() if self.shared else frozenset()

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

    def are_measured(self, shards: Sequence[str]) -> bool:
        """Whether step 1 is done for these shards, here or on other machines."""
        return not self.unmeasured(shards)

    def unmeasured(self, shards: Sequence[str]) -> list[str]:
        """The shards for which step 1 is not done anywhere."""
        finished = self.finished()
        return missing(shards, lambda name: self.has("pairs", name) or f"pairs-{name}" in finished)

    def fill(self, table: str, shards: Shards, function: Callable[[WorkFolder, NumberedShard], None]) -> None:
        """Calls a function for each shard that lacks `pairs`, `scored` or `similarities`, in worker processes.

        What another machine has made is brought here.
        """
        finished = self.finished()
        there = [f"{table}-{shard.name}" in finished for _, shard in shards]
        lacking = [
            item
            for item, is_there in zip(shards, there, strict=True)
            if not self.has(table, item[1].name) or (self.shared is not None and not is_there)
        ]
        if not lacking:
            return  # otherwise processes would start without work

        def do(some: list[NumberedShard], wait: bool) -> Iterable[Outcome[None]]:
            work = partial(_fill_one, self, table, function, wait)
            done = in_processes(work, some, self.num_workers, memory_kept, name_of=lambda item: str(item[1].table))
            what = {
                "pairs": "filter: shards, images and texts",
                "scored": "filter: shards, the network",
                "similarities": "filter: shards, image-text similarity",
            }[table]
            return track(done, what=what, total=len(some))

        for _ in last_those_of_others(lacking, do):
            pass

    def tracked(self, pictures: Iterator[T], total: int) -> Iterator[T]:
        """Shows progress per picture if one process does all the work; several processes show it per shard."""
        return track(pictures, what="filter: images", total=total) if self.num_workers == 1 else pictures


def _fill_one(
    work: WorkFolder, table: str, function: Callable[[WorkFolder, NumberedShard], None], wait: bool, item: NumberedShard
) -> Outcome[None]:
    name = item[1].name

    def path(of: str) -> str:
        return work.file(of, name).relative_to(work.path).as_posix()

    def others() -> list[str]:
        return [path(other) for other in _BEFORE[table] if work.has(other, name)]

    piece = Piece(f"{table}-{name}", path(table), others, f"the table {table} of shard {name}")
    return work.pieces.make(piece, partial(function, work, item), wait=wait)


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
