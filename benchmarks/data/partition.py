"""Ingest's plan, and every shard read from it, on made-up pairs: CPU seconds and memory by their number.

python -m benchmarks.data.partition 1000000 [--archive] [--memory-limit 100MB]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from align.config.infrastructure import EngineConfig
from align.config.ingest import IngestConfig
from align.durable.pieces import Pieces
from align.formats.policy import OptedOut
from align.ingest.partition import make_plan, planned_shard
from align.ingest.sources.candidates import CANDIDATES, RESPONSES
from align.services.engine import open_engine
from align.services.executors.executors import LocalExecutor
from benchmarks.peak import forget_peak, peak_bytes
from tests.support.params import load_params

#: Pairs of a file of the source; those of Common Crawl's have twice as many.
_OF_A_FILE = 10_000


class Step(NamedTuple):
    """What a step took: CPU seconds of this process, and its peak of memory."""

    cpu_s: float
    peak_bytes: int


class MadeUp:
    """A source, see `align.ingest.sources.Source`: two pairs a picture; of an archive, each page has a response."""

    def __init__(self, num_pairs: int, *, is_archive: bool) -> None:
        self.files = self.inputs = [f"{number:06d}" for number in range(num_pairs // _OF_A_FILE)]
        self._is_archive = is_archive

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`."""
        numbers = pa.array(range(_OF_A_FILE), pa.int64())
        text = pc.cast(numbers, pa.string())
        halves = pc.cast(pc.divide(numbers, 2), pa.string())
        url = pc.binary_join_element_wise(f"https://pictures.example/{file}/", halves, ".jpg", "")
        page = pc.binary_join_element_wise(f"https://pages.example/{file}/", halves, "")
        columns = {
            "url": url, "text": pc.binary_join_element_wise("a picture of the thing with number", text, " "),
            "text_source": pa.array(["alt"] * _OF_A_FILE), "page_url": page,
        }  # fmt: skip
        nothing = {field.name: pa.nulls(_OF_A_FILE, field.type) for field in CANDIDATES if field.name not in columns}
        yield from _batches(columns | nothing, CANDIDATES)
        if self._is_archive:
            answers = {
                "url": url, "status": pa.array([200] * _OF_A_FILE, pa.int32()),
                "location": pa.nulls(_OF_A_FILE, pa.string()), "file": pa.array([file] * _OF_A_FILE), "offset": numbers,
            }  # fmt: skip
            yield from _batches(answers, RESPONSES)
        counts["rows"] += _OF_A_FILE

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`."""
        return None


def _batches(columns: dict[str, pa.Array], schema: pa.Schema) -> list[pa.RecordBatch]:
    return pa.table([columns[name] for name in schema.names], schema).to_batches(4096)


def run(folder: Path, num_pairs: int, memory_limit: str, *, is_archive: bool) -> dict[str, Step]:
    """The steps of a plan in an empty folder, on one core."""
    params = load_params()
    source, pieces = MadeUp(num_pairs, is_archive=is_archive), Pieces(folder)
    engine = params.section(EngineConfig).model_copy(update={"num_threads": 1, "memory_limit": memory_limit})
    steps: dict[str, Step] = {}

    def took(name: str, start: float) -> None:
        steps[name] = Step(time.process_time() - start, peak_bytes())
        forget_peak()

    forget_peak()
    start = time.process_time()
    plan = make_plan(
        source, pieces, LocalExecutor(1), partial(open_engine, engine), OptedOut([]), params.section(IngestConfig)
    )
    took("plan", start)
    start, num_rows = time.process_time(), 0
    for name in plan.names:
        with planned_shard(plan, source, pieces, name) as shard:
            num_rows += sum(1 for _ in shard.rows())
    took("rows of all shards", start)
    if num_rows != num_pairs:
        raise ValueError(f"{num_rows:,} of {num_pairs:,} pairs came back")
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("num_pairs", type=int)
    parser.add_argument("--archive", action="store_true")
    parser.add_argument("--memory-limit", default="800MB", help="engine.memory_limit")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        for name, step in run(Path(folder), args.num_pairs, args.memory_limit, is_archive=args.archive).items():
            print(f"{args.num_pairs:>12,} {name:<20} {step.cpu_s:8.1f} CPU s {step.peak_bytes >> 20:8,} MB")


if __name__ == "__main__":
    main()
