"""The filter's work folder: which table of which shard is in which file, and how steps run over all shards.

`align.filter.tables` has the columns. Every file appears complete or not at all, and an existing one is not made again,
so a killed run resumes at the shard where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import FilterConfig
from align.console import track
from align.files import temporary_name
from align.filter.tables import BIGRAMS, MAX_ROWS
from align.formats.policy import OptedOut
from align.formats.raw import RawShard
from align.memory import freed_memory_kept
from align.processes import in_processes

T = TypeVar("T")
#: A shard and its position in the listing of data/raw.
NumberedShard = tuple[int, RawShard]
Shards = Sequence[NumberedShard]

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
    """

    path: Path
    config: FilterConfig
    opted_out: OptedOut
    num_workers: int
    num_threads: int

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

    def fill(self, table: str, shards: Shards, function: Callable[[WorkFolder, NumberedShard], None]) -> None:
        """Calls a function for each shard that lacks `pairs`, `scored` or `similarities`, in worker processes."""
        missing = [item for item in shards if not self.has(table, item[1].name)]
        if not missing:
            return  # or processes would start for nothing
        done = in_processes(
            partial(function, self), missing, self.num_workers, memory_kept, name_of=lambda item: str(item[1].table)
        )
        for _ in track(
            done,
            what={
                "pairs": "filter: shards, images and texts",
                "scored": "filter: shards, the network",
                "similarities": "filter: shards, image-text similarity",
            }[table],
            total=len(missing),
        ):
            pass

    def tracked(self, pictures: Iterator[T], total: int) -> Iterator[T]:
        """Shows progress per picture where one process does all the work; several show it per shard."""
        return track(pictures, what="filter: images", total=total) if self.num_workers == 1 else pictures


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
