"""The worker processes of `align ingest`. Each writes whole shards, within its share of the bounds of requests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig
from align.display.console import say, track
from align.durable.processes import in_processes_with
from align.durable.work import ALL, CLAIMS, Portion
from align.ingest.download import Downloader, SlowHosts
from align.ingest.fetching import Answer, Pictures, ShardCounts, write_shard
from align.ingest.partition import PlannedShard
from align.ingest.writer import files_beside_table, table_of
from align.pieces import Outcome, Piece, Pieces, last_those_of_others
from align.services.s3.store import keep_tar

#: What names a shard to the function that opens it.
Shard = TypeVar("Shard")

_PROGRESS_S = 10.0


@dataclass(frozen=True)
class Resources:
    """What a run may use.

    Attributes:
        download: bounds of requests to the web; worker processes share them.
        engine: worker processes, and bounds of the sort.
        store: access to s3://, and where tars are kept.
    """

    download: DownloadConfig
    engine: EngineConfig
    store: StoreConfig


def write_shards(
    pieces: Pieces,
    shards: Sequence[Shard],
    open_shard: Callable[[Shard], AbstractContextManager[PlannedShard]],
    pictures: Pictures,
    resources: Resources,
    *,
    portion: Portion = ALL,
) -> None:
    """Writes shards in parallel and reports progress.

    A worker keeps its downloader, so that what it learned about a host, such as its robots.txt, serves the next shard.

    Args:
        pieces: the work folder, and who shares it.
        shards: what `open_shard` takes.
        open_shard: opens one shard in the worker process. Can be pickled.
        pictures: how pictures are processed.
        resources: what the workers may use.
        portion: after a range, shards of other machines stay where they are; `--finish` brings them and makes no shard.
    """

    def do(some: list[Shard], wait: bool) -> Iterable[Outcome[ShardCounts]]:
        share = share_of(resources.download, resources.engine.num_workers, len(some))
        write = partial(_write, pieces, open_shard, pictures, resources.store, (portion, wait))
        slow_hosts = SlowHosts(pieces.folder / CLAIMS, str(os.getpid()))
        open_downloader = partial(Downloader, share, refuse=pictures.opted_out.refusal, on_busy=slow_hosts)
        written = in_processes_with(open_downloader, write, some, resources.engine.num_workers, name_of=_name_of)
        return track(written, what="ingest: shards", total=len(some))

    start, num_pairs, num_pictures, num_not_fetched, num_refused = time.monotonic(), 0, 0, 0, 0
    for number, counts in enumerate(last_those_of_others(shards, do), start=1):
        num_pairs, num_pictures = num_pairs + counts.num_pairs, num_pictures + counts.num_with_picture
        num_not_fetched, num_refused = num_not_fetched + counts.num_not_fetched, num_refused + counts.num_refused
        skipped = f", {num_not_fetched:,} not fetched" if num_not_fetched else ""
        spent_s = time.monotonic() - start
        left_s = spent_s / number * (len(shards) - number)
        say(
            f"ingest: {number:,} of {len(shards):,} shards, {num_pairs:,} pairs{skipped}, "
            f"{num_pictures / max(1, num_pairs - num_not_fetched):.1%} with a picture, "
            f"{num_pairs / max(spent_s, 1e-9):,.0f} pairs/s, {left_s / 60:,.1f} min left"
        )
    if num_refused:
        say(
            f"ingest: {num_refused:,} address(es) are refused now: of a private network that download.allow_networks "
            f"({', '.join(resources.download.allow_networks) or 'empty'}) does not name. Their pairs keep the failure "
            "that they had, and can be retried"
        )


def _name_of(shard: object) -> str:
    """What a message calls a shard, given by name or as data/raw has it."""
    return f"shard {getattr(shard, 'name', shard)} of data/raw"


def share_of(download: DownloadConfig, num_workers: int | None, num_shards: int) -> DownloadConfig:
    """The bounds of one worker process, chosen so that all workers together obey `download`."""
    count = max(1, min(num_workers or os.cpu_count() or 1, num_shards))
    rate = download.max_requests_per_host_per_s
    return download.model_copy(
        update={
            "max_connections": max(1, download.max_connections // count),
            "max_connections_per_host": max(1, download.max_connections_per_host // count),
            "max_requests_per_host_per_s": None if rate is None else rate / count,
        }
    )


def _write(
    pieces: Pieces,
    open_shard: Callable[[Shard], AbstractContextManager[PlannedShard]],
    pictures: Pictures,
    store: StoreConfig,
    how: tuple[Portion, bool],
    downloader: Downloader,
    shard: Shard,
) -> Outcome[ShardCounts]:
    """Writes one shard; `how`: the portion, and whether to wait for a shard that another process is making."""
    portion, wait = how
    name = str(getattr(shard, "name", shard))

    def make() -> ShardCounts:
        with open_shard(shard) as planned:
            fetch = partial(_fetch, downloader, name)
            return write_shard(pieces.folder, planned, pictures, fetch=fetch, keep_tar=partial(keep_tar, config=store))

    piece = Piece(name, table_of(name), partial(files_beside_table, pieces.folder, name), f"shard {name}")
    return pieces.make(piece, make, wait=wait, bring=portion.shards is None, may_make=not portion.finish)


def _fetch(downloader: Downloader, name: str, urls: Iterable[str]) -> Iterator[Answer]:
    """The web's answers, with a progress line every ten seconds."""
    start = last = time.monotonic()
    count = num_good = 0
    for answer in downloader.fetch(urls):
        count, num_good = count + 1, num_good + (answer.data is not None)
        yield answer
        now = time.monotonic()
        if now - last >= _PROGRESS_S:
            last = now
            say(
                f"ingest: shard {name}: {count:,} addresses, {num_good / count:.1%} fetched, "
                f"{count / (now - start):,.0f}/s"
            )
