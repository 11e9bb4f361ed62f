"""The plan of a round: the shard of every pair, and where its picture's bytes are, in one table sorted by shard.

Pairs are divided by host. Hosts, in order of the hash of their name, are laid into lanes by a running sum; a host with
more pairs than a lane holds is divided by hash of the address into lanes of its own. Within a lane, a hash of the
address gives the shard. So one task can ask all hosts of a lane and write its shards, each of which has a part of all
of them; the pairs of an address are in one shard, in the order of the source. What is in a shard depends on the source
and `ingest.shard_size` alone, whoever fetches it.

    plan-0-DIGEST/     pairs.parquet (PlannedRow), plan.json
    plan-1/            of pairs that were redirected to hosts which their shards do not ask, by those hosts

DuckDB sorts, on disk where the pairs do not fit in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.config.ingest import IngestConfig
from align.durable.files import write_text
from align.durable.steps import Work
from align.durable.work import key_of
from align.formats.policy import REFUSED
from align.formats.raw import HOPELESS, RESERVED
from align.formats.statuses import NOT_FETCHED
from align.ingest.scan import SCANNED
from align.ingest.sources.raw_before import Before
from align.interfaces.sql import Engine
from align.pairs.text_cuts import TextCuts
from align.web.addresses import MAX_REDIRECTS

OpenSql = Callable[[], AbstractContextManager[Engine]]
#: A lane holds so many shards at most, and all pairs are in so many lanes at least, if there are as many shards.
_SHARDS_A_LANE, _NUM_LANES = 16, 64
#: Rows of a row group: about a shard, since a task reads those of its shard.
_ROWS_AT_ONCE, _GROUP_ROWS = 1024, 10_240
_HTTP_OK = 200
PAIRS, _PLAN = "pairs.parquet", "plan.json"
#: The step that writes shards, and in its result the pairs that the next round plans.
WRITTEN, MOVED = "written", "moved.parquet"


class PlannedRow(NamedTuple):
    """A pair, and where its picture is: a row of the plan.

    Attributes:
        shard: its number.
        url: of the picture, as are the next five columns of CANDIDATES.
        status: of a pair with a problem; None: failed to download.
        problem: why it has no picture, as an `error_message` of data/raw; None: it may have one.
        inline: the bytes themselves.
        file, offset: what has the bytes; the source reads it.
        num_bytes: if the file is a tar of the data/raw before; the offset is that of the picture's bytes there.
        width, height, sha256: of such a picture.
        original_width, original_height: where the source or the data/raw before says so.
        target: the address to ask for the picture; None: the web is not asked.
        num_redirects: that have led there.
        url_hash, host_hash: of `url`, and of the host to ask.
        file_number, row_number: the order of the source.
    """

    shard: int
    url: str
    text: str
    text_source: str | None
    page_url: str | None
    licence: str | None
    reservation: str | None
    status: str | None
    problem: str | None
    inline: bytes | None
    file: str | None
    offset: int | None
    num_bytes: int | None
    width: int | None
    height: int | None
    sha256: str | None
    original_width: int | None
    original_height: int | None
    target: str | None
    num_redirects: int
    url_hash: int
    host_hash: int
    file_number: int
    row_number: int


@dataclass(frozen=True)
class Plan:
    """The shards of a round.

    Attributes:
        result: the name of its result in the work folder.
        num_pairs: of the round.
        first: number of the first shard.
        lanes: number of shards of each lane, and what divided host it is a part of (-1: of none); shards are numbered
            lane after lane.
        name_digits: of a shard's name.
        position_digits: of a key, after the shard's name.
        has_rights: whether a page of the folder says anything of rights.
    """

    result: str
    num_pairs: int
    first: int
    lanes: Sequence[Sequence[int]]
    name_digits: int
    position_digits: int
    has_rights: bool

    @property
    def end(self) -> int:
        """The number after that of the last shard."""
        return self.first + sum(num for num, _ in self.lanes)

    def name(self, shard: int) -> str:
        """The name of a shard, such as `00000`."""
        return f"{shard:0{self.name_digits}d}"

    @property
    def names(self) -> list[str]:
        """Of all shards, in order."""
        return [self.name(shard) for shard in range(self.first, self.end)]


class PlannedPairs:
    """The table of a plan, opened once by each process. A context manager; `schema` has the columns."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        self._file = pq.ParquetFile(self._stream, pre_buffer=False)
        groups = [self._file.metadata.row_group(group) for group in range(self._file.num_row_groups)]
        known = [group.column(0).statistics for group in groups]
        self._spans, self.schema = [(one.min, one.max) for one in known], self._file.schema_arrow
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close(force=True)

    def rows(self, shard: int) -> Iterator[PlannedRow]:
        """The pairs of a shard in the order of the source."""
        for batch in self._batches(shard, PlannedRow._fields):
            yield from map(PlannedRow._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))

    def asks(self, shard: int) -> Iterator[tuple[str, str, int]]:
        """What the web is asked for, each address once: `url`, `target`, `num_redirects`."""
        seen = set[str]()
        for batch in self._batches(shard, ("shard", "url", "target", "num_redirects")):
            for url, target, num in zip(*(column.to_pylist() for column in batch.columns[1:]), strict=True):
                if target is not None and url not in seen:
                    seen.add(url)
                    yield url, target, num

    def _batches(self, shard: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        groups = [group for group, (first, last) in enumerate(self._spans) if first <= shard <= last]
        for batch in self._file.iter_batches(_ROWS_AT_ONCE, groups, list(columns), use_threads=False) if groups else ():
            low, high = np.searchsorted(batch["shard"].to_numpy(), (shard, shard + 1))
            if low < high:
                yield batch.slice(low, high - low).select(columns)


@dataclass(frozen=True)
class Planner:
    """Makes plans in a work folder.

    Attributes:
        work: the work folder.
        open_sql: returns a context manager of a SQL engine.
        config: `max_pages`: number of pages, or of pictures where the source names no pages: those with the smallest
            hash of their address. So they are spread over the archive, and are always the same ones. None: all.
        images_from: as `ingest.images_from`; `web` for a table of addresses.
        obeys: whether reservations of pages are obeyed.
        text_cuts: a picture is asked for only if one of its texts can pass these; None: always.
        before: what the data/raw before has.
    """

    work: Work
    open_sql: OpenSql
    config: IngestConfig
    images_from: str
    obeys: bool
    text_cuts: TextCuts | None
    before: Before

    def first(self) -> Plan:
        """Joins what was scanned with what is known, and plans all pairs."""
        # another cut, or another data/raw before, asks for other pictures, but not in other shards
        result = f"plan-0-{key_of(self.before.result, repr(self.text_cuts))[:12]}"
        plan = self._planned(result, 0, self._join)
        # lanes that are not full have shards that are not: in no round more than four times as many as were needed
        most = 4 * (MAX_REDIRECTS + 1) * (plan.num_pairs // self.config.shard_size + 1)
        return replace(plan, name_digits=max(5, len(str(most))))

    def next(self, plan: Plan) -> Plan | None:
        """Plans the pairs that the shards of a round were redirected with; None if there are none."""

        def moved(sql: Engine) -> tuple[str, str]:
            sql.view("moved", self.work.folder / WRITTEN / "*" / MOVED)
            pairs = f"SELECT * FROM moved WHERE shard >= {plan.first}"
            return pairs, pairs

        if not any((self.work.folder / WRITTEN / name / MOVED).is_file() for name in plan.names):
            return None
        number = int(plan.result.split("-")[1]) + 1
        following = self._planned(f"plan-{number}", plan.end, moved)
        return replace(following, name_digits=plan.name_digits, has_rights=plan.has_rights)

    def _planned(self, result: str, first: int, pairs: Callable[[Engine], tuple[str, str]]) -> Plan:
        """Plans the rows of a query; `pairs` returns one for their hashes, too."""

        def fill(out: Path) -> None:
            with self.open_sql() as sql:
                hashes, rows = pairs(sql)
                lanes = _lay(sql, hashes, self.config.shard_size)
                sql.write(_in_order(rows, first), out / PAIRS, group_rows=_GROUP_ROWS)
                sql.view("planned", out / PAIRS)
                [(num, num_rights)] = sql.rows("SELECT count(*), count(licence) + count(reservation) FROM planned")
                [(longest,)] = sql.rows("SELECT max(num) FROM (SELECT count(*) AS num FROM planned GROUP BY shard)")
            write_text(out / _PLAN, json.dumps([num, num_rights > 0, longest or 1, lanes]) + "\n")

        self.work.make(result, fill)
        self.work.fetch([result])
        num, has_rights, longest, lanes = json.loads((self.work.folder / result / _PLAN).read_bytes())
        return Plan(result, num, first, lanes, 5, max(4, len(str(longest - 1))), has_rights)

    def _join(self, sql: Engine) -> tuple[str, str]:
        """Makes the table of all pairs, with the responses of their archive, and what says which of them are known."""
        for kind in ("candidates", "responses"):
            sql.view(kind, self.work.folder / SCANNED / "*" / f"{kind}.parquet")
        sql.view("known", self.before.tables(sql.scratch))
        chosen = "candidates"
        if self.config.max_pages is not None:
            chosen = f"""(
                SELECT * FROM candidates WHERE coalesce(page_url, url) IN (
                    SELECT page FROM (SELECT DISTINCT coalesce(page_url, url) AS page FROM candidates)
                    WHERE page IS NOT NULL ORDER BY md5(page), page LIMIT {self.config.max_pages}
                )
            )"""
        is_stored = f"answer.status = {_HTTP_OK}" if self.images_from != "web" else "FALSE"
        reservation = "coalesce(chosen.reservation, answer.reservation)"
        # not sorted at once: reading the files meanwhile needs half as much memory again
        sql.table("joined", f"""
            SELECT *, {self.images_from != "archive"} AND coalesce(problem, file) IS NULL AND inline IS NULL AS asks
            FROM (
                SELECT chosen.url, text, text_source, page_url, licence, {reservation} AS reservation,
                       CASE WHEN chosen.opted_out THEN '{REFUSED}'
                            WHEN {self.obeys} AND {reservation} IS NOT NULL THEN '{RESERVED}: ' || {reservation}
                            WHEN answer.opted_out THEN '{REFUSED}' ELSE problem END AS problem,
                       CASE WHEN chosen.opted_out OR ({self.obeys} AND {reservation} IS NOT NULL) THEN NULL
                            ELSE chosen.status END AS status,
                       inline, answer.status AS http_status,
                       coalesce(chosen.file, CASE WHEN {is_stored} THEN answer.file END) AS file,
                       coalesce(chosen."offset", CASE WHEN {is_stored} THEN answer."offset" END) AS "offset",
                       original_width, original_height, url_hash, host_hash, file_number, row_number,
                       {self.text_cuts.condition if self.text_cuts else "TRUE"} AS can_pass
                FROM {chosen} AS chosen LEFT JOIN {_answers(sql)} AS answer ON answer.url = chosen.url
            )
        """)  # fmt: skip
        sql.table("hopeful", "SELECT DISTINCT url_hash FROM joined WHERE asks AND can_pass")
        return "SELECT * FROM joined", _DECIDED


#: Where the picture of each pair is: a text that can pass is asked for; a picture that is known stays without one.
_DECIDED = f"""
    SELECT url, text, text_source, page_url, licence, reservation,
           CASE WHEN is_hopeless THEN '{NOT_FETCHED}' WHEN asks THEN known_status ELSE status END AS status,
           CASE WHEN is_hopeless THEN '{HOPELESS}' WHEN asks THEN known_error
                WHEN problem IS NULL AND inline IS NULL AND file IS NULL
                THEN coalesce('HTTP ' || http_status, 'not in archive') ELSE problem END AS problem,
           inline, coalesce(file, known_file) AS file, coalesce("offset", known_offset) AS "offset", num_bytes,
           width, height, sha256,
           coalesce(original_width, CASE WHEN NOT is_hopeless THEN known_width END) AS original_width,
           coalesce(original_height, CASE WHEN NOT is_hopeless THEN known_height END) AS original_height,
           CASE WHEN asks AND NOT is_hopeless AND known_url IS NULL THEN url END AS target, 0 AS num_redirects,
           url_hash, host_hash, file_number, row_number
    FROM (
        SELECT joined.*, known.url AS known_url, known.status AS known_status, known.error_message AS known_error,
               known.file AS known_file, known."offset" AS known_offset, num_bytes, width, height, sha256,
               known.original_width AS known_width, known.original_height AS known_height,
               asks AND hopeful.url_hash IS NULL AND sha256 IS NULL AS is_hopeless
        FROM joined
        LEFT JOIN hopeful ON hopeful.url_hash = joined.url_hash
        LEFT JOIN known ON known.url = CASE WHEN asks THEN joined.url END
    )
"""


def _answers(sql: Engine) -> str:
    """Makes the response of each address: the first good one, else the first; redirects are followed in the archive."""
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
    return answers


def _lay(sql: Engine, pairs: str, shard_size: int) -> list[tuple[Any, ...]]:
    """Makes the tables `placed`, of hosts, and `lanes`; returns the shards of each lane, see `Plan`."""
    sql.table("hosts", f"SELECT host_hash, count(*) AS num FROM ({pairs}) AS pairs GROUP BY host_hash")
    [(num_pairs,)] = sql.rows("SELECT CAST(coalesce(sum(num), 0) AS BIGINT) FROM hosts")
    size = shard_size * min(_SHARDS_A_LANE, max(1, num_pairs // (shard_size * _NUM_LANES)))
    sql.table("large", f"SELECT host_hash, (num + {size - 1}) // {size} AS num_parts FROM hosts WHERE num > {size}")
    [(num_parts,)] = sql.rows("SELECT CAST(coalesce(sum(num_parts), 0) AS BIGINT) FROM large")
    sql.table("placed", f"""
        SELECT host_hash, CAST(sum(num_parts) OVER (ORDER BY host_hash) - num_parts AS UBIGINT) AS lane,
               CAST(num_parts AS UBIGINT) AS num_parts
        FROM large
        UNION ALL
        SELECT host_hash, CAST({num_parts} + (sum(num) OVER (ORDER BY host_hash) - num) // {size} AS UBIGINT),
               CAST(1 AS UBIGINT)
        FROM hosts WHERE num <= {size}
    """)  # fmt: skip
    sql.table("lanes", f"""
        SELECT lane, host, CAST(size AS UBIGINT) AS size,
               CAST(sum(size) OVER (ORDER BY lane) - size AS UBIGINT) AS first
        FROM (
            SELECT lane, max(host) AS host, greatest(1, (count(*) + {shard_size // 2}) // {shard_size}) AS size FROM (
                SELECT lane + url_hash % num_parts AS lane,
                       CASE WHEN num_parts > 1 THEN CAST(lane AS BIGINT) ELSE -1 END AS host
                FROM ({pairs}) AS pairs JOIN placed ON placed.host_hash = pairs.host_hash
            ) GROUP BY lane
        )
    """)  # fmt: skip
    return sql.rows("SELECT size, host FROM lanes ORDER BY lane")


def _in_order(pairs: str, first: int) -> str:
    columns = ", ".join(f'pairs."{name}"' for name in PlannedRow._fields[1:])
    return f"""
        SELECT CAST({first} + lanes.first + (pairs.url_hash // placed.num_parts) % lanes.size AS INTEGER) AS shard,
               {columns}
        FROM ({pairs}) AS pairs
        JOIN placed ON placed.host_hash = pairs.host_hash
        JOIN lanes ON lanes.lane = placed.lane + pairs.url_hash % placed.num_parts
        ORDER BY 1, file_number, row_number
    """
