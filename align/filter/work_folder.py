"""The filter's work folder: the results of its steps (`align.durable.steps`), and what all its tasks need.

    references/        fingerprints.npz: of the evaluation images
    measured/SHARD/    images, pairs, unigrams, bigrams
    judged/            verdicts, candidates and rare; vocabulary.json
    evaluation/        views.arrow and index.faiss: of the evaluation images, for the network's embeddings
    scored/SHARD/      scored, close
    twins/             twins
    remaining/, compared/SHARD/    remaining; similarities: only for a given model
    decided/           decided
    written/SHARD/     decisions, facts, known_images

`align.filter.tables` has the columns. SQL writes tables of all shards, sorted by row number: a task reads the row
groups of its shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.config.infrastructure import Device
from align.display.console import track
from align.durable.memory import freed_memory_kept
from align.durable.steps import Step, Work
from align.filter.tables import BIGRAMS, MAX_ROWS
from align.formats.policy import OptedOut
from align.formats.raw import RawShard
from align.interfaces.executor import Executor

T = TypeVar("T")
#: A shard and its position in the listing of data/raw.
NumberedShard = tuple[int, RawShard]
Shards = Sequence[NumberedShard]

#: Freed memory is reused between shards; blocks of half of it or more, such as large pictures, return to the system.
_KEPT_BYTES = 64 << 20


@dataclass(frozen=True)
class FilterWork:
    """The work folder of one run, and what the work on a shard needs. Can be pickled.

    Attributes:
        work: the results of the steps.
        config: the cuts.
        opted_out: entries whose pairs are flagged.
        num_workers: processes of this machine that work on shards.
        num_threads: threads of all these processes together.
        device: what computes the network.
        features: where measurements of evaluation images are kept between runs; None: nowhere.
    """

    work: Work
    config: FilterConfig
    opted_out: OptedOut
    num_workers: int
    num_threads: int
    device: Device
    features: Path | None = None

    @property
    def folder(self) -> Path:
        """The work folder."""
        return self.work.folder

    @property
    def threads_per_worker(self) -> int:
        """Threads of one process."""
        return max(1, self.num_threads // self.num_workers)

    def run(self, step: Step[FilterWork, NumberedShard], shards: Shards, executor: Executor) -> None:
        """Does a step with the shards that lack it; its resource is this work, on the machine of the task."""
        self.work.run(replace(step, resource=self._opened), {item[1].name: item for item in shards}, executor)

    @contextmanager
    def _opened(self, here: Work) -> Iterator[FilterWork]:
        with freed_memory_kept(_KEPT_BYTES):
            yield replace(self, work=here)

    def measured(self, shard: RawShard, table: str) -> Path:
        """A table that was measured of a shard, such as `pairs`."""
        return self.folder / "measured" / shard.name / f"{table}.parquet"

    def rows(self, table: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of shard `index` in a table of all shards, such as `judged/verdicts`; one column is row_number."""
        result, _, name = table.partition("/")
        first, end = index * MAX_ROWS, (index + 1) * MAX_ROWS
        with self.work.open(result, f"{name}.parquet") as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            at = file.schema_arrow.get_field_index("row_number")
            known = [file.metadata.row_group(group).column(at).statistics for group in range(file.num_row_groups)]
            groups = [group for group, one in enumerate(known) if one and one.min < end and one.max >= first]
            read = file.read_row_groups(groups, columns, use_threads=False)
        low, high = np.searchsorted(read["row_number"].to_numpy(), (first, end))
        return read.slice(low, high - low).combine_chunks()

    def tracked(self, pictures: Iterator[T], total: int) -> Iterator[T]:
        """Shows progress per picture if one process does all the work; several processes show it per shard."""
        return track(pictures, what="filter: images", total=total) if self.num_workers == 1 else pictures


def write_table(table: pa.Table, path: Path) -> None:
    """Writes a table of a result."""
    stated = [name for name in ("row_number", "key") if name in table.column_names]
    # Most columns are random numbers; packing the others would cost more than it saves in reading. BIGRAMS has many
    # rows per row number.
    encoding = {"row_number": "DELTA_BINARY_PACKED"} if table.schema.equals(BIGRAMS) else None
    pq.write_table(
        table, path, compression="none", use_dictionary=False, write_statistics=stated, column_encoding=encoding
    )
