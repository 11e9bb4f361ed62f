"""`align ingest --plan`: what an ingest will read, and what machines need for it. Reads no record, writes nothing."""

from __future__ import annotations

import math
from functools import partial

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.durable.processes import in_threads
from align.errors import DataError
from align.formats.parquet import ForeignTable
from align.ingest.sources import open_source
from align.ingest.workers import Resources
from align.interfaces.store import Files
from align.services.files.files import StoreFiles

#: Measured on the sample and on ten million made-up pairs. Memory of a process that does tasks; of the one that plans,
#: beside `engine.memory_limit`; bytes on its disk for a pair: what was scanned, and what DuckDB spills while it sorts;
#: and of a picture in a tar, beside its own.
_TASK_MB, _PLANNER_MB, _PAIR_BYTES, _SAMPLE_BYTES = 300, 400, 300, 4_000


def forecast(config: IngestConfig, resources: Resources, archive: str) -> list[str]:
    """The lines to print.

    Raises:
        DataError: no file is there, or a line of a list cannot be used, as for `ingest`.
        ServiceError: a server is unavailable.
    """
    files, engine = StoreFiles(resources.store, resources.download), resources.engine
    source = open_source(config, archive, files)
    named = [file for file in source.inputs if not file.endswith("/")] or files.list(archive, ("",))
    num_bytes = sum(int(stamp.partition(" ")[0]) for stamp in files.stamps(named))
    shards = f"then a shard for each {config.shard_size:,} pairs, which the scan counts"
    disk = f"{_PAIR_BYTES:,} bytes a pair"
    if config.max_pages is None and all(file.lower().endswith(".parquet") for file in source.files):
        counts = list(in_threads(partial(_num_rows, files), source.files, resources.store.num_connections))
        if None not in counts:
            num_rows = sum(filter(None, counts))
            shards = f"then {max(1, -(-num_rows // config.shard_size)):,} shards, as the tables have {num_rows:,} rows"
            disk = f"{_size(num_rows * _PAIR_BYTES)}, {disk}"
    where = "this machine" if engine.runner == "local" else f"the cluster ({engine.runner})"
    at_once = "one task a core" if engine.num_workers is None else f"{engine.num_workers:,} tasks at a time"
    return [
        f"{archive}: {len(named):,} file(s), {_size(num_bytes)} (ingest.source: {config.source})",
        f"tasks: {len(source.files):,} to scan; {shards}",
        f"memory: {at_once} on {where} (engine.num_workers), {_TASK_MB} MB each; to plan, here: {engine.memory_limit} "
        f"(engine.memory_limit) and {_PLANNER_MB} MB",
        f"disk: to plan, here: {disk}, until data/raw is there; that has the pictures, and {_SAMPLE_BYTES:,} bytes "
        "more for each",
    ]


def _num_rows(files: Files, table: str) -> int | None:
    """By the footer; None if it is damaged, which the scan says."""
    try:
        with files.open(table) as stream:
            return ForeignTable(stream, table).num_rows
    except (pa.ArrowException, OSError, DataError):
        return None


def _size(num_bytes: int) -> str:
    units = ["kB", "MB", "GB", "TB"]
    power = min(len(units), int(math.log(max(num_bytes, 1), 1000)))
    return f"{num_bytes / 1000**power:,.1f} {units[power - 1]}" if power else f"{num_bytes:,} bytes"
