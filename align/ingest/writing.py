"""A shard of the plan -> a shard of data/raw. Each picture is examined and stored once.

The bytes come from the source's own files, from the page itself (a data: URI), from the data/raw before, or from the
web, whose answers are given. Pairs are written in the order of the plan, so equal answers give equal shards. Those that
were redirected to another host are not: they are a table of the shard's result, which is planned again. Memory holds
one picture, and the outcome of each address.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig
from align.durable.steps import Work
from align.formats.policy import REFUSED, OptedOut
from align.formats.raw import RESERVED, SCHEMA, WITHOUT_RIGHTS
from align.formats.statuses import FAILED_TO_DOWNLOAD, NOT_FETCHED, SUCCESS
from align.ingest.examination import PictureOutcome, examine
from align.ingest.limits import TooLarge
from align.ingest.plan import MOVED, PAIRS, Plan, PlannedPairs, PlannedRow
from align.ingest.scan import host_hash
from align.ingest.sources import Source
from align.ingest.spool import Spool
from align.ingest.writer import RawShardWriter, RowWriter
from align.services.files.files import StoreFiles
from align.services.s3.store import keep_tar

_OPTED_OUT = PictureOutcome(FAILED_TO_DOWNLOAD, REFUSED)


class ShardCounts(NamedTuple):
    """Of a shard: its pairs, those with a picture, and those for which nobody was asked."""

    num_pairs: int
    num_with_picture: int
    num_not_fetched: int


class Moved(NamedTuple):
    """Where an address was redirected to, and by how many redirects."""

    target: str
    num_redirects: int


#: Of an address: the position of its bytes in the spool, the outcome of a failure, or where it was redirected to.
Answer = int | PictureOutcome | Moved


@dataclass(frozen=True)
class Shards:
    """What tasks need to write the shards of a plan. Can be pickled.

    Attributes:
        plan: the plan.
        source: reads the bytes that the source has.
        max_pixels: larger pictures are refused; their header is enough to tell.
        download: bounds of all tasks together, and whether larger pictures are shrunk.
        opted_out: what must no longer be fetched or kept.
        store: where tars are, and are put.
    """

    plan: Plan
    source: Source
    max_pixels: int
    download: DownloadConfig
    opted_out: OptedOut
    store: StoreConfig

    @contextmanager
    def opened(self, work: Work) -> Iterator[OpenShards]:
        """The same in a process, with the results on its machine."""
        with work.open(self.plan.result, PAIRS) as stream, PlannedPairs(stream) as pairs:
            yield OpenShards(self, pairs, StoreFiles(self.store))


@dataclass(frozen=True)
class OpenShards:
    """What a process keeps open between shards."""

    of: Shards
    pairs: PlannedPairs
    files: StoreFiles

    def outcome(
        self, row: PlannedRow, answer: int | PictureOutcome | None, spool: Spool
    ) -> tuple[PictureOutcome, bytes | None]:
        """What becomes of the picture of a pair that has no problem, and the bytes to store."""
        if isinstance(answer, PictureOutcome):
            return answer, None
        if isinstance(answer, int):
            return self._examined(next(spool.read([answer])) or "empty body")
        if row.inline is not None:
            return self._examined(row.inline)
        if row.num_bytes is not None:
            known = PictureOutcome(SUCCESS, width=row.width, height=row.height, sha256=row.sha256)
            return known, self.files.read(str(row.file), row.offset or 0, row.num_bytes)
        try:
            return self._examined(self.of.source.read(str(row.file), row.offset) or "bytes cannot be read")
        except TooLarge as error:
            return self._examined(str(error))

    def _examined(self, data: bytes | str) -> tuple[PictureOutcome, bytes | None]:
        return examine(data, self.of.max_pixels, self.of.download.resize_px, self.of.download.jpeg_quality)


def write_archived(kept: OpenShards, out: Path, shard: int) -> ShardCounts:
    """Writes a shard whose pictures the source has."""
    with Spool(out) as spool:
        return write_shard(kept, out, shard, spool, {})


def write_shard(kept: OpenShards, out: Path, shard: int, spool: Spool, answers: Mapping[str, Answer]) -> ShardCounts:
    """Writes a shard, with the answers of the web for its addresses."""
    plan, opted_out = kept.of.plan, kept.of.opted_out
    schema = SCHEMA if plan.has_rights else WITHOUT_RIGHTS
    outcomes: dict[tuple[str, str | None, int | None], PictureOutcome] = {}
    keys: dict[str, str] = {}
    with ExitStack() as stack:
        moved = stack.enter_context(RowWriter(out / MOVED, kept.pairs.schema))
        keep = partial(keep_tar, config=kept.of.store)
        writer = stack.enter_context(RawShardWriter(out, plan.name(shard), plan.position_digits, keep, schema))
        for row in kept.pairs.rows(shard):
            answer = answers[row.url] if row.target is not None else None
            if isinstance(answer, Moved):
                moved.add(_moved(row, answer))
                continue
            picture, data = (row.url, row.file, row.offset), None  # an archive may have two pictures of one address
            outcome = outcomes.get(picture)
            if row.problem is not None:
                outcome = PictureOutcome(row.status or FAILED_TO_DOWNLOAD, row.problem)
            elif outcome is None:
                outcome, data = kept.outcome(row, answer, spool)
                if opted_out.matches(None, None, outcome.sha256):
                    outcome, data = replace(_OPTED_OUT, sha256=outcome.sha256), None
                elif outcome.sha256 is not None:
                    first = keys.setdefault(outcome.sha256, writer.next_key)
                    outcome, data = replace(outcome, image_key=first), data if first == writer.next_key else None
                outcomes[picture] = outcome
            writer.add(_raw_row(schema, writer.next_key, row, outcome), data)
        return ShardCounts(writer.num_rows, writer.statuses[SUCCESS], writer.statuses[NOT_FETCHED])


def _moved(row: PlannedRow, to: Moved) -> dict[str, object]:
    """A pair for the next round."""
    return row._asdict() | to._asdict() | {"host_hash": host_hash(to.target)}


def _raw_row(schema: pa.Schema, key: str, row: PlannedRow, outcome: PictureOutcome) -> dict[str, object]:
    """A row of data/raw, in the order of its columns. There the text is called `caption`, as img2dataset has it.

    An opted-out or reserved pair has none, as after `align opt_out --purge`.
    """
    if row.original_width is not None and outcome.error_message != REFUSED:
        outcome = replace(outcome, original_width=row.original_width, original_height=row.original_height)
    is_refused = (outcome.error_message or "").partition(":")[0] in (REFUSED, RESERVED)
    values = row._asdict() | vars(outcome) | {"key": key, "caption": "" if is_refused else row.text}
    return {name: values[name] for name in schema.names}
