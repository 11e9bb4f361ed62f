"""A shard of the plan -> a shard of data/raw. Each picture is fetched, examined and stored once.

The bytes come from the source's own files, from the page itself (a data: URI), from the data/raw before, or from the
web. Bytes from the web are spooled to disk in the order of their arrival and then written in the order of the plan, so
equal responses give equal shards. A redirect is followed to a host that the shard asks anyway; the pairs of another one
are planned again, as a table in the shard's result. Memory holds one picture, and the outcome of each address.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from align.config.infrastructure import StoreConfig
from align.config.ingest import DownloadConfig
from align.display.console import say
from align.durable.steps import Work
from align.formats.policy import REFUSED, OptedOut
from align.formats.raw import RESERVED, SCHEMA, WITHOUT_RIGHTS
from align.formats.statuses import FAILED_TO_DOWNLOAD, NOT_FETCHED, SUCCESS
from align.ingest.download import Ask, Downloader, Fetched
from align.ingest.examination import PictureOutcome, examine
from align.ingest.limits import TooLarge
from align.ingest.plan import MOVED, PAIRS, PLANNED, Plan, PlannedPairs, PlannedRow
from align.ingest.scan import bare, host_hash
from align.ingest.sources import Source
from align.ingest.spool import Spool
from align.ingest.writer import RawShardWriter, RowWriter
from align.interfaces.store import Files
from align.services.files.files import StoreFiles
from align.services.s3.store import keep_tar
from align.web.addresses import Target, target_of

_PROGRESS_S = 10.0
_OPTED_OUT = PictureOutcome(FAILED_TO_DOWNLOAD, REFUSED)


class ShardCounts(NamedTuple):
    """Of a shard: its pairs, those with a picture, and those for which nobody was asked."""

    num_pairs: int
    num_with_picture: int
    num_not_fetched: int


@dataclass(frozen=True)
class Pictures:
    """How pictures are processed.

    Attributes:
        max_pixels: larger pictures are refused; their header is enough to tell.
        download: whether larger pictures are shrunk.
        opted_out: what must no longer be fetched or kept.
    """

    max_pixels: int
    download: DownloadConfig
    opted_out: OptedOut

    def examined(self, data: bytes | str) -> tuple[PictureOutcome, bytes | None]:
        """See `examine`."""
        return examine(data, self.max_pixels, self.download.resize_px, self.download.jpeg_quality)


@dataclass(frozen=True)
class Shards:
    """What tasks need to write the shards of a plan. Can be pickled.

    Attributes:
        plan: the plan.
        source: reads the bytes that the source has.
        pictures: how pictures are processed.
        store: where tars are, and are put.
        num_tasks: that ask the web at the same time; they share the bounds of all requests.
    """

    plan: Plan
    source: Source
    pictures: Pictures
    store: StoreConfig
    num_tasks: int = 1

    @contextmanager
    def opened(self, work: Work) -> Iterator[OpenShards]:
        """The same in a process, with the results on its machine."""
        with work.open(self.plan.result, PAIRS) as stream, PlannedPairs(stream) as pairs, ExitStack() as stack:
            web = stack.enter_context(Web(self.pictures, self.num_tasks))
            yield OpenShards(self, pairs, web, StoreFiles(self.store))


@dataclass(frozen=True)
class OpenShards:
    """What a process keeps open between shards."""

    of: Shards
    pairs: PlannedPairs
    web: Web
    files: Files

    def bytes_of(self, row: PlannedRow) -> bytes | str:
        """The picture of a pair that has a file, or why there is none."""
        try:
            return self.of.source.read(str(row.file), row.offset) or "bytes cannot be read"
        except TooLarge as error:
            return str(error)


class Fetching(NamedTuple):
    """A shard whose pictures the web has: its number, and among how many lanes the bounds of its hosts are divided."""

    shard: int
    num_parts: int


#: Position in the spool, outcome of a failure, or where it was redirected to.
Answer = int | PictureOutcome | Ask


class Web:
    """Asks the web for one shard after another, and keeps connections and what is known of hosts. A context manager."""

    def __init__(self, pictures: Pictures, num_tasks: int) -> None:
        self._pictures, self._num_tasks = pictures, num_tasks
        self._hosts = frozenset[str]()
        self._num_parts = 0
        self._open = ExitStack()

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def fetch(self, asks: list[Ask], num_parts: int, spool: Spool) -> dict[str, Answer]:
        """The answer for each address; what leads to a host that none of them is at is not followed."""
        if num_parts != self._num_parts:
            self._open.close()
            limits = share_of(self._pictures.download, self._num_tasks, num_parts)
            self._downloader = self._open.enter_context(
                Downloader(limits, refuse=self._pictures.opted_out.refusal, is_ours=self._is_ours)
            )
            self._num_parts = num_parts
        self._hosts = frozenset(filter(None, (_host_of(ask.target) for ask in asks)))
        answers: dict[str, Answer] = {}
        for fetched in _with_progress(self._downloader.fetch(asks)):
            if fetched.moved is not None:
                answers[fetched.url] = fetched.moved
            elif fetched.data is None:
                answers[fetched.url] = PictureOutcome(FAILED_TO_DOWNLOAD, fetched.error, fetched.retryable)
            else:
                answers[fetched.url] = spool.add(fetched.data)
        return answers

    def _is_ours(self, target: Target) -> bool:
        return bare(target.host) in self._hosts


def write_archived(kept: OpenShards, out: Path, shard: int) -> ShardCounts:
    """Writes a shard whose pictures the source has."""
    with Spool(out) as spool:
        return _write(kept, out, shard, spool, {})


def write_fetched(kept: OpenShards, out: Path, item: Fetching) -> ShardCounts:
    """Writes a shard, for which the web is asked first."""
    with Spool(out) as spool:
        answers = kept.web.fetch(list(kept.pairs.asks(item.shard)), item.num_parts, spool)
        return _write(kept, out, item.shard, spool, answers)


def _write(kept: OpenShards, out: Path, shard: int, spool: Spool, answers: Mapping[str, Answer]) -> ShardCounts:
    plan, opted_out = kept.of.plan, kept.of.pictures.opted_out
    schema = SCHEMA if plan.has_rights else WITHOUT_RIGHTS
    outcomes: dict[tuple[str, str | None, int | None], PictureOutcome] = {}
    keys: dict[str, str] = {}
    with ExitStack() as stack:
        moved = stack.enter_context(RowWriter(out / MOVED, PLANNED))
        keep = partial(keep_tar, config=kept.of.store)
        writer = stack.enter_context(RawShardWriter(out, plan.name(shard), plan.position_digits, keep, schema))
        for row in kept.pairs.rows(shard):
            answer = answers[row.url] if row.target is not None else None
            if isinstance(answer, Ask):
                moved.add(_moved(row, answer))
                continue
            picture, data = (row.url, row.file, row.offset), None  # an archive may have two pictures of one address
            outcome = outcomes.get(picture)
            if row.problem is not None:
                outcome = PictureOutcome(row.status or FAILED_TO_DOWNLOAD, row.problem)
            elif outcome is None:
                outcome, data = _outcome(kept, row, answer, spool)
                if opted_out.matches(None, None, outcome.sha256):
                    outcome, data = replace(_OPTED_OUT, sha256=outcome.sha256), None
                elif outcome.sha256 is not None:
                    first = keys.setdefault(outcome.sha256, writer.next_key)
                    outcome, data = replace(outcome, image_key=first), data if first == writer.next_key else None
                outcomes[picture] = outcome
            writer.add(_raw_row(schema, writer.next_key, row, outcome), data)
        return ShardCounts(writer.num_rows, writer.statuses[SUCCESS], writer.statuses[NOT_FETCHED])


def _outcome(
    kept: OpenShards, row: PlannedRow, answer: int | PictureOutcome | None, spool: Spool
) -> tuple[PictureOutcome, bytes | None]:
    """What becomes of the picture of a pair that has no problem, and the bytes to store."""
    examined = kept.of.pictures.examined
    if isinstance(answer, PictureOutcome):
        return answer, None
    if isinstance(answer, int):
        return examined(next(spool.read([answer])) or "empty body")
    if row.inline is not None:
        return examined(row.inline)
    if row.num_bytes is None:
        return examined(kept.bytes_of(row))
    outcome = PictureOutcome(SUCCESS, width=row.width, height=row.height, sha256=row.sha256)
    return outcome, kept.files.read(str(row.file), row.offset or 0, row.num_bytes)


def _moved(row: PlannedRow, ask: Ask) -> dict[str, object]:
    """A pair for the next round."""
    target = {"target": ask.target, "num_redirects": ask.num_redirects, "host_hash": host_hash(ask.target)}
    return row._asdict() | target


def _raw_row(schema: pa.Schema, key: str, row: PlannedRow, outcome: PictureOutcome) -> dict[str, object]:
    """A row of data/raw, in the order of its columns. There the text is called `caption`, as img2dataset has it.

    An opted-out or reserved pair has none, as after `align opt_out --purge`.
    """
    if row.original_width is not None and outcome.error_message != REFUSED:
        outcome = replace(outcome, original_width=row.original_width, original_height=row.original_height)
    is_refused = (outcome.error_message or "").partition(":")[0] in (REFUSED, RESERVED)
    values = row._asdict() | vars(outcome) | {"key": key, "caption": "" if is_refused else row.text}
    return {name: values[name] for name in schema.names}


def share_of(download: DownloadConfig, num_tasks: int, num_parts: int = 1) -> DownloadConfig:
    """The bounds of one task.

    Args:
        download: those of all together.
        num_tasks: that work at the same time.
        num_parts: tasks among which the hosts of this one are divided.
    """
    rate = download.max_requests_per_host_per_s
    return download.model_copy(
        update={
            "max_connections": max(1, download.max_connections // num_tasks),
            "max_connections_per_host": max(1, download.max_connections_per_host // num_parts),
            "max_requests_per_host_per_s": None if rate is None else rate / num_parts,
        }
    )


def _host_of(address: str) -> str:
    """The host to ask, without its port; empty if nobody can be asked."""
    try:
        return bare(target_of(address).host)
    except ValueError:
        return ""


def _with_progress(answers: Iterator[Fetched]) -> Iterator[Fetched]:
    """The web's answers, with a line every ten seconds."""
    start = last = time.monotonic()
    count = num_good = 0
    for answer in answers:
        count, num_good = count + 1, num_good + (answer.data is not None)
        yield answer
        now = time.monotonic()
        if now - last >= _PROGRESS_S:
            last = now
            say(f"ingest: {count:,} addresses, {num_good / count:.1%} fetched, {count / (now - start):,.0f}/s")
