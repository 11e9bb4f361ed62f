"""The plan of an ingest: every pair that a source names, sorted into shards before any picture is fetched.

All pairs of an address lie in one shard (its number is a hash of the address), so an address is asked for once, and
shards can be made in any order, on any machine. Within a shard pairs stand in the order of the source. The number of
shards is pairs / `shard_size`; sizes scatter around that, and an address with very many pairs makes its shard longer.

Sources are read file by file in worker processes; the sort is DuckDB's, on disk where it does not fit in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.console import track
from align.errors import DataError
from align.files import write_text
from align.ingest.sources import Source
from align.ingest.sources.candidates import CANDIDATES, RESPONSES
from align.protocols.sql import Engine
from align.work import in_processes

_ORDER = [("part", pa.int32()), ("row", pa.int64())]
_PARTS = {
    "candidates": pa.schema([*CANDIDATES, *_ORDER, ("url_hash", pa.uint64())]),
    "responses": pa.schema([*RESPONSES, *_ORDER]),
}
_HTTP_OK = 200
_MAX_REDIRECTS = 5


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        table: the pairs; columns of CANDIDATES, `shard`, `http_status` (of the archive's answer; null: it has none).
        names: of the shards, in order.
        place_digits: of a key, after the shard's name.
        counts: what scanning met: `pages`, `pages_unreadable`, `truncated_files`, `rows_unreadable`, ...
    """

    table: Path
    names: list[str]
    place_digits: int
    counts: dict[str, int]

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The pairs of one shard in order, some thousand of them in memory at a time."""
        shard = int(name)
        file = pq.ParquetFile(self.table)
        column = file.schema_arrow.get_field_index("shard")
        for group in range(file.num_row_groups):
            bounds = file.metadata.row_group(group).column(column).statistics
            if bounds is not None and not bounds.min <= shard <= bounds.max:
                continue
            for batch in file.iter_batches(batch_size=4096, row_groups=[group]):
                yield from batch.filter(pa.compute.equal(batch["shard"], shard)).to_pylist()


def make_plan(
    source: Source,
    folder: Path,
    open_sql: Callable[[], Any],
    *,
    max_pages: int | None,
    shard_size: int,
    num_workers: int | None,
) -> Plan:
    """Scans the source and sorts its pairs, or takes what an earlier run left in `folder`.

    Args:
        source: where pairs come from.
        folder: of the plan; its parts are committed one by one.
        open_sql: a context manager that gives a SQL `Engine`.
        max_pages: pages taken, those with the smallest hashes of their address: spread over the archive, and the same
            ones every time; None: all.
        shard_size: pairs per shard, nearly.
        num_workers: processes.

    Raises:
        DataError: the source names no pair.
    """  # fmt: skip
    done = folder / "plan.json"
    if not done.exists():
        folder.mkdir(exist_ok=True)
        for kind in _PARTS:
            (folder / kind).mkdir(exist_ok=True)
        scan = partial(_scan, source, folder)
        files = list(enumerate(source.files))
        counts: Counter[str] = Counter()
        for found in track(in_processes(scan, files, num_workers), what="ingest: files read", total=len(files)):
            counts.update(found)
        with open_sql() as sql:
            values = _sort(sql, folder, max_pages, shard_size)
        write_text(done, json.dumps({**values, "counts": dict(sorted(counts.items()))}) + "\n")
    values = json.loads(done.read_bytes())
    if not values["num_pairs"]:
        raise DataError(f"{source.files[0]}: no picture is named in the {len(source.files):,} file(s) of this source")
    num_shards, digits = values["num_shards"], max(5, len(str(values["num_shards"] - 1)))
    names = [f"{number:0{digits}d}" for number in range(num_shards)]
    return Plan(folder / "pairs.parquet", names, max(4, len(str(values["longest"] - 1))), values["counts"])


def _scan(source: Source, folder: Path, numbered: tuple[int, str]) -> dict[str, int]:
    """Reads one file into two parquet parts; returns its counts. What is there is not read again."""
    part, file = numbered
    done = folder / f"{part:06d}.json"
    if not done.exists():
        counts: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        paths = {kind: folder / kind / f"{part:06d}.parquet" for kind in _PARTS}
        writers = {kind: pq.ParquetWriter(path, _PARTS[kind], compression="zstd") for kind, path in paths.items()}
        for batch in source.scan(file, counts):
            kind = "candidates" if "caption" in batch.schema.names else "responses"
            size = len(batch)
            columns = [*batch.columns, pa.array([part] * size, pa.int32())]
            columns.append(pa.array(np.arange(rows[kind], rows[kind] + size)))
            if kind == "candidates":
                columns.append(pa.array(_hashes(batch["url"].to_pylist())))
            rows[kind] += size
            writers[kind].write_batch(pa.record_batch(columns, schema=_PARTS[kind]))
        for writer in writers.values():
            writer.close()
        write_text(done, json.dumps(dict(counts)) + "\n")
    found: dict[str, int] = json.loads(done.read_bytes())
    return found


def _hashes(urls: list[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    digests = b"".join(hashlib.md5(url.encode("utf-8", "surrogatepass")).digest()[:8] for url in urls)
    return np.frombuffer(digests, dtype="<u8")


def _sort(sql: Engine, folder: Path, max_pages: int | None, shard_size: int) -> dict[str, int]:
    for kind in _PARTS:
        sql.view(kind, folder / kind / "*.parquet")
    chosen = "candidates"
    if max_pages is not None:
        chosen = f"""(
            SELECT * FROM candidates WHERE page_url IN (
                SELECT page_url FROM (SELECT DISTINCT page_url FROM candidates WHERE page_url IS NOT NULL)
                ORDER BY md5(page_url), page_url LIMIT {max_pages}
            )
        )"""
    num_pairs = sql.rows(f"SELECT count(*) FROM {chosen} AS chosen")[0][0]
    num_shards = max(1, -(-num_pairs // shard_size))
    # The first good answer to each address, else the first one; redirects are followed within the archive.
    sql.table("answers", f"""
        SELECT url, status, location, file, "offset" FROM (
            SELECT *, row_number() OVER (PARTITION BY url ORDER BY status <> {_HTTP_OK}, part, row) AS place
            FROM responses
        ) WHERE place = 1
    """)  # fmt: skip
    answers = "answers"
    for hop in range(_MAX_REDIRECTS):
        if not sql.rows(f"SELECT 1 FROM {answers} WHERE location IS NOT NULL LIMIT 1"):
            break
        sql.table(f"hop{hop}", f"""
            SELECT here.url, coalesce(there.status, here.status) AS status, there.location,
                   coalesce(there.file, here.file) AS file, coalesce(there."offset", here."offset") AS "offset"
            FROM {answers} AS here LEFT JOIN answers AS there ON there.url = here.location
        """)  # fmt: skip
        answers = f"hop{hop}"
    sql.write(f"""
        SELECT CAST(url_hash % {num_shards} AS INTEGER) AS shard, chosen.url, caption, text_source, page_url, problem,
               coalesce(chosen.file, CASE WHEN status = {_HTTP_OK} THEN found.file END) AS file,
               coalesce(chosen."offset", CASE WHEN status = {_HTTP_OK} THEN found."offset" END) AS "offset",
               inline, status AS http_status
        FROM {chosen} AS chosen LEFT JOIN {answers} AS found ON found.url = chosen.url
        ORDER BY shard, part, row
    """, folder / "pairs.parquet")  # fmt: skip
    longest = sql.rows(
        f"SELECT max(n) FROM (SELECT count(*) AS n FROM {chosen} AS chosen GROUP BY url_hash % {num_shards})"
    )[0][0]
    num_pages = sql.rows(f"SELECT count(DISTINCT page_url) FROM {chosen} AS chosen")[0][0]
    return {"num_pairs": num_pairs, "num_shards": num_shards, "longest": longest or 1, "num_pages": num_pages}
