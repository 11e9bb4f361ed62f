"""The partition of a source: each pair that it names gets its shard before any picture is fetched. An ingest's plan.

A hash of the address numbers the shard, so all pairs of an address are in one shard: each address is requested once,
and shards can be made in any order, on any machine. Within a shard, pairs keep the order of the source. The number of
shards is pairs / `shard_size`; sizes vary around that, and an address with very many pairs makes its shard longer.

Worker processes read the source file by file; DuckDB sorts, on disk where the pairs do not fit in memory. The plan of
the last ingest is kept beside data/raw, so that the next one, which asks for pictures again, scans nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.config.ingest import IngestConfig
from align.display.console import say, track
from align.durable.files import link, replace_directory, replaced, write_text
from align.durable.pieces import Piece, Pieces
from align.durable.processes import in_threads
from align.errors import DataError
from align.formats.policy import REFUSED, OptedOut
from align.formats.raw import RIGHTS
from align.ingest.sources import Source
from align.ingest.sources.candidates import CANDIDATES, RESPONSES, num_cut
from align.ingest.sources.outcomes import in_words
from align.ingest.sources.reading import damage_in
from align.interfaces.executor import Executor, Task
from align.interfaces.sql import Engine
from align.web.addresses import MAX_REDIRECTS

#: A row of the plan, see `PlannedShard.rows`.
PlannedRow = dict[str, Any]

_ORDER = [("file_number", pa.int32()), ("row_number", pa.int64())]
_TABLES = {
    "candidates": pa.schema([*CANDIDATES, *_ORDER, ("url_hash", pa.uint64())]),
    "responses": pa.schema([*RESPONSES, *_ORDER, ("opted_out", pa.bool_())]),  # the target of a redirect is
}
#: A count: the file was left out.
_QUARANTINED = "files_quarantined"
#: Damaged files that an error names.
_NAMED = 3
_HTTP_OK = 200
#: All pairs in the order of the shards, until they are divided; rows that are divided at once; files shared at once.
_SORTED, _ROWS_AT_ONCE, _NUM_SHARED = "sorted.parquet", 8192, 8


@dataclass(frozen=True)
class PlannedShard:
    """The pairs of one shard, and access to the bytes that their source has.

    Attributes:
        name: such as `00000`.
        position_digits: of a key, after the name.
        rows: returns the pairs in order: columns of CANDIDATES, `shard` and
            `http_status` (of the archive's response; null: none). Called twice.
        read: the source's bytes by (file, offset); None if they cannot be read.
        has_rights: whether a page of the folder says anything of rights.
    """

    name: str
    position_digits: int
    rows: Callable[[], Iterator[PlannedRow]]
    read: Callable[[str, int | None], bytes | None]
    has_rights: bool = False


@dataclass(frozen=True)
class IngestPlan:
    """The shards that all pairs are written to.

    Attributes:
        names: of the shards, in order.
        position_digits: of a key, after the shard's name.
        has_rights: see `PlannedShard`.
        counts: from scanning the source: those of `align.ingest.sources.Source`, `texts_cut`, ...
        quarantined: files of the source that were left out, since reading them killed a worker process.
    """

    names: list[str]
    position_digits: int
    has_rights: bool
    counts: dict[str, int]
    quarantined: list[str]


#: The plan's folder in the work folder: what was scanned, and then the pairs, as files of so many shards each.
FOLDER = "plan"
_SHARDS_AT_ONCE = 10
PLAN = Piece("plan", f"{FOLDER}/plan.json")


def _pairs_of(shard: int) -> Piece:
    number = shard // _SHARDS_AT_ONCE
    return Piece(f"pairs-{number:06d}", f"{FOLDER}/pairs/{number:06d}.parquet")


def _all_pairs(num_shards: int) -> list[Piece]:
    return [_pairs_of(shard) for shard in range(0, num_shards, _SHARDS_AT_ONCE)]


def planned_shard(position_digits: int, has_rights: bool, source: Source, pieces: Pieces, name: str) -> PlannedShard:
    """One shard of the plan, with the bytes of the source's files."""
    pairs = _pairs_of(int(name))
    pieces.bring([pairs])
    rows = partial(_rows, pieces.folder / pairs.last, int(name))
    return PlannedShard(name, position_digits, rows, source.read, has_rights)


def _rows(path: Path, shard: int) -> Iterator[PlannedRow]:
    with pq.ParquetFile(path) as file:
        column = file.schema_arrow.get_field_index("shard")
        groups = [file.metadata.row_group(group).column(column).statistics.min for group in range(file.num_row_groups)]
        for group in (group for group, of_shard in enumerate(groups) if of_shard == shard):
            yield from file.read_row_group(group).to_pylist()


def make_plan(
    source: Source,
    pieces: Pieces,
    executor: Executor,
    open_sql: Callable[[], Any],
    opted_out: OptedOut,
    config: IngestConfig,
    kept: Path,
) -> IngestPlan:
    """Scans the source and sorts its pairs, or takes the plan that is finished or kept.

    Args:
        source: where pairs come from.
        pieces: the work folder, where the plan is made; each scanned file is a piece.
        executor: scans the files.
        open_sql: returns a context manager of a SQL `Engine`.
        opted_out: asked at each hop of redirects within an archive.
        config: `max_pages`: number of pages, or of pictures where the source names no pages: those with the smallest
            hash of their address. So they are spread over the archive, and are always the same ones. None: all.
            `shard_size`: approximate pairs per shard. `max_damaged_share`: judges what the scans say, and changes none.
        kept: where `keep_plan` has put the plan of the last ingest, if that had the same source and values.

    Raises:
        DataError: the source names no pair, or too many of its files are damaged, or every file that was read killed
            its worker process.
    """
    folder = pieces.folder / FOLDER

    def make() -> dict[str, Any]:
        scanned = _scan_all(source, pieces, executor, opted_out, config.max_damaged_share)
        with open_sql() as sql:
            num_shards = _sort(sql, folder, config.max_pages, config.shard_size)
        sizes, has_rights = _divide(folder, num_shards)
        longest = max(sizes.values(), default=1)
        values = {"num_pairs": sum(sizes.values()), "num_shards": num_shards, "longest": longest}
        return {**values, "has_rights": has_rights, **scanned}

    def take() -> dict[str, Any]:
        say("ingest: the source and the values are those of the last ingest, so nothing is scanned again")
        shutil.rmtree(folder / "pairs", ignore_errors=True)  # a killed run left it
        shutil.copytree(kept / "pairs", folder / "pairs", copy_function=link)
        values: dict[str, Any] = json.loads((kept / "plan.json").read_bytes())
        return values

    def write() -> None:
        folder.mkdir(exist_ok=True)
        values = take() if kept.is_dir() else make()
        for _ in in_threads(pieces.share, _all_pairs(values["num_shards"]), _NUM_SHARED):
            pass
        write_text(folder / "plan.json", json.dumps(values) + "\n")

    pieces.make(PLAN, write)
    pieces.bring([PLAN])
    values = json.loads((folder / "plan.json").read_bytes())
    _require_few(damage_in(values["counts"]), len(source.files), config.max_damaged_share)
    if not values["num_pairs"]:
        found = "; ".join(in_words(values["counts"])) or "they hold nothing"
        raise DataError(f"{source.files[0]}: the {len(source.files):,} file(s) of this source name no picture: {found}")
    num_shards, digits = values["num_shards"], max(5, len(str(values["num_shards"] - 1)))
    names = [f"{number:0{digits}d}" for number in range(num_shards)]
    position_digits = max(4, len(str(values["longest"] - 1)))
    return IngestPlan(names, position_digits, values["has_rights"], values["counts"], values["quarantined"])


def keep_plan(work: Path, kept: Path) -> None:
    """Keeps the plan of a finished ingest in place of the one before.

    Not if another machine has a part of it, or if a file was left out: the next ingest tries that again.
    """
    plan = json.loads((work / PLAN.last).read_bytes())
    files = [PLAN.last, *(pairs.last for pairs in _all_pairs(plan["num_shards"]))]
    if kept.is_dir() or plan["quarantined"] or not all((work / file).is_file() for file in files):
        return
    with replace_directory(kept.parent, "ingest") as new:
        (new / kept.name / "pairs").mkdir(parents=True)
        for file in files:
            link(work / file, new / kept.name / Path(file).relative_to(FOLDER))


def _scan_all(
    source: Source, pieces: Pieces, executor: Executor, opted_out: OptedOut, max_damaged_share: float
) -> dict[str, Any]:
    """Reads all files of the source into tables; returns the counts, and the files that were left out."""
    files = list(enumerate(source.files))
    parts = [_scanned(number) for number, _ in files]
    undone = {part.name for part in pieces.missing(parts)}
    finished = [part for part in parts if part.name not in undone]
    pieces.bring(finished)
    damage = [each for part in finished for each in damage_in(_counts_of(pieces, part))]
    _require_few(damage, len(files), max_damaged_share)
    left = [file for file, part in zip(files, parts, strict=True) if part.name in undone]
    scan = partial(_scan, source, pieces, opted_out)
    instead = partial(_quarantine, pieces.folder / FOLDER)
    done = executor.map(Task(nullcontext, scan, itemgetter(1), instead), left)
    for of_file in track(done, what="ingest: files read", total=len(left)):
        damage += damage_in(of_file or ())
        _require_few(damage, len(files), max_damaged_share)
    pieces.bring(parts)
    counts: Counter[str] = Counter()
    quarantined: list[str] = []
    for (_, file), part in zip(files, parts, strict=True):
        counts_of = _counts_of(pieces, part)
        counts.update(counts_of)
        if counts_of.get(_QUARANTINED):
            quarantined.append(file)
    return {"counts": dict(sorted(counts.items())), "quarantined": quarantined}


def _require_few(damage: Sequence[str], num_files: int, share: float) -> None:
    """Raises DataError if more of the files are damaged than `ingest.max_damaged_share` allows."""
    if len(damage) <= share * num_files:
        return
    first = "; ".join(damage[:_NAMED]) + (f"; and {len(damage) - _NAMED:,} more" if len(damage) > _NAMED else "")
    enough = math.ceil(1e6 * len(damage) / num_files) / 1e6
    raise DataError(
        f"{first}; fetch it again, or set ingest.max_damaged_share (now {share:g}; {enough:g} allows {len(damage):,} "
        f"of {num_files:,} files) to take what can be read; no file is read again"
    )


def _counts_of(pieces: Pieces, scanned: Piece) -> dict[str, int]:
    counts: dict[str, int] = json.loads((pieces.folder / scanned.last).read_bytes())
    return counts


def _scanned(file_number: int) -> Piece:
    """The tables of one file of the source, and last its counts."""
    tables = [f"{FOLDER}/{kind}/{file_number:06d}.parquet" for kind in _TABLES]
    return Piece(f"scan-{file_number:06d}", f"{FOLDER}/{file_number:06d}.json", lambda: tables)


def _scan(
    source: Source, pieces: Pieces, opted_out: OptedOut, scratch: Path | None, numbered: tuple[int, str]
) -> dict[str, int] | None:
    """Reads one file into two parquet files and its counts. A file that was read before is not read again: None."""
    pieces = pieces.here(scratch)
    folder, (file_number, file) = pieces.folder / FOLDER, numbered

    def make() -> dict[str, int]:
        counts: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        with _tables(folder, file_number) as writers:
            for batch in source.scan(file, counts):
                kind = "candidates" if "text" in batch.schema.names else "responses"
                size = len(batch)
                columns = [*batch.columns, pa.array([file_number] * size, pa.int32())]
                columns.append(pa.array(np.arange(rows[kind], rows[kind] + size)))
                if kind == "candidates":
                    columns.append(pa.array(hashes_of(batch["url"].to_pylist())))
                    counts.update(num_cut(batch))
                else:
                    ends = [opted_out.matches(location, None, None) for location in batch["location"].to_pylist()]
                    columns.append(pa.array(ends, pa.bool_()))
                rows[kind] += size
                writers[kind].write_batch(pa.record_batch(columns, schema=_TABLES[kind]))
        write_text(pieces.folder / _scanned(file_number).last, json.dumps(counts) + "\n")
        return counts

    return pieces.make(_scanned(file_number), make)


def _quarantine(folder: Path, numbered: tuple[int, str]) -> None:
    """Leaves a file out: writes empty tables, over anything that a killed worker left, and a count."""
    file_number, file = numbered
    say(
        f"ingest: warning: {file}: left out: reading it killed a worker process twice, the second time with nothing "
        "beside it, most likely for its memory"
    )
    with _tables(folder, file_number):
        pass
    write_text(folder.parent / _scanned(file_number).last, json.dumps({_QUARANTINED: 1}) + "\n")


@contextmanager
def _tables(folder: Path, file_number: int) -> Iterator[dict[str, pq.ParquetWriter]]:
    """The tables of one file. They appear when the block succeeds: a worker of a killed run may still be writing."""
    with ExitStack() as stack:
        writers = {}
        for kind, schema in _TABLES.items():
            path = folder / kind / f"{file_number:06d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = stack.enter_context(replaced(path, on_disk=False))
            writers[kind] = stack.enter_context(pq.ParquetWriter(beside, schema, compression="zstd"))
        yield writers


def hashes_of(urls: list[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A hash of each address; modulo the number of shards it is that of the shard."""
    digests = b"".join(hashlib.md5(url.encode("utf-8", "surrogatepass")).digest()[:8] for url in urls)
    return np.frombuffer(digests, dtype="<u8")


def _sort(sql: Engine, folder: Path, max_pages: int | None, shard_size: int) -> int:
    """Writes all pairs in the order of the shards. Returns how many shards there are."""
    for kind in _TABLES:
        sql.view(kind, folder / kind / "*.parquet")
    chosen = "candidates"
    if max_pages is not None:
        chosen = f"""(
            SELECT * FROM candidates WHERE coalesce(page_url, url) IN (
                SELECT page FROM (SELECT DISTINCT coalesce(page_url, url) AS page FROM candidates)
                WHERE page IS NOT NULL ORDER BY md5(page), page LIMIT {max_pages}
            )
        )"""
    num_pairs = sql.rows(f"SELECT count(*) FROM {chosen} AS chosen")[0][0]
    num_shards: int = max(1, -(-num_pairs // shard_size))
    # The first good response of each address, else the first one; redirects are followed within the archive.
    sql.table("answers", f"""
        SELECT url, status, location, file, "offset", opted_out, reservation FROM (
            SELECT *, row_number() OVER (
                PARTITION BY url ORDER BY status <> {_HTTP_OK}, file_number, row_number
            ) AS rank
            FROM responses
        ) WHERE rank = 1
    """)  # fmt: skip
    answers = "answers"
    for hop in range(MAX_REDIRECTS):
        if not sql.rows(f"SELECT 1 FROM {answers} WHERE location IS NOT NULL LIMIT 1"):
            break
        sql.table(f"hop{hop}", f"""
            SELECT source.url, coalesce(target.status, source.status) AS status, target.location,
                   coalesce(target.file, source.file) AS file, coalesce(target."offset", source."offset") AS "offset",
                   source.opted_out OR coalesce(target.opted_out, FALSE) AS opted_out,
                   coalesce(target.reservation, source.reservation) AS reservation
            FROM {answers} AS source LEFT JOIN answers AS target ON target.url = source.location
        """)  # fmt: skip
        answers = f"hop{hop}"
    # not sorted at once: reading the files meanwhile needs half as much memory again
    sql.table("joined", f"""
        SELECT CAST(url_hash % {num_shards} AS INTEGER) AS shard, chosen.url, text, text_source, page_url,
               CASE WHEN answer.opted_out THEN '{REFUSED}' ELSE problem END AS problem,
               coalesce(chosen.file, CASE WHEN answer.status = {_HTTP_OK} THEN answer.file END) AS file,
               coalesce(chosen."offset", CASE WHEN answer.status = {_HTTP_OK} THEN answer."offset" END) AS "offset",
               inline, answer.status AS http_status,
               chosen.status, original_width, original_height, stated_sha256, licence,
               coalesce(chosen.reservation, answer.reservation) AS reservation, file_number, row_number
        FROM {chosen} AS chosen LEFT JOIN {answers} AS answer ON answer.url = chosen.url
    """)  # fmt: skip
    sql.write("SELECT * FROM joined ORDER BY shard, file_number, row_number", folder / _SORTED)
    return num_shards


def _divide(folder: Path, num_shards: int) -> tuple[Counter[int], bool]:
    """Writes the sorted pairs as files of few shards, a row group of one shard each.

    So a task opens one small file and reads its own rows only, however many pairs there are.

    Returns:
        The pairs of each shard; whether anything is said of the rights of any.
    """
    sizes: Counter[int] = Counter()
    has_rights = False
    (folder / "pairs").mkdir(exist_ok=True)
    with pq.ParquetFile(folder / _SORTED) as pairs:
        runs = _by_shard(pairs)
        run = next(runs, None)
        for start in range(0, num_shards, _SHARDS_AT_ONCE):
            path = folder.parent / _pairs_of(start).last
            with pq.ParquetWriter(path, pairs.schema_arrow, compression="zstd") as writer:
                while run is not None and run[0] < start + _SHARDS_AT_ONCE:
                    sizes[run[0]] += len(run[1])
                    has_rights |= any(run[1][name].null_count < len(run[1]) for name in RIGHTS)
                    writer.write_batch(run[1])
                    run = next(runs, None)
    (folder / _SORTED).unlink()
    return sizes, has_rights


def _by_shard(pairs: pq.ParquetFile) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows in order, a few thousand of one shard at a time."""
    for batch in pairs.iter_batches(_ROWS_AT_ONCE):
        shards = batch["shard"].to_numpy()
        for start, end in pairwise([0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(batch)]):
            yield int(shards[start]), batch.slice(start, end - start)
