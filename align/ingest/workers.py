"""The tasks of `align ingest` that make shards. Each writes one, within its share of the bounds of requests."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig
from align.display.console import say, track
from align.durable.pieces import Piece, Pieces
from align.durable.work import CLAIMS
from align.formats.policy import OptedOut
from align.ingest.download import Downloader, SlowHosts
from align.ingest.fetching import Answer, Pictures, ShardCounts, write_shard
from align.ingest.partition import PlannedShard
from align.ingest.writer import files_beside_table, table_of
from align.interfaces.executor import Executor, Step
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
    executor: Executor,
    shards: Sequence[Shard],
    open_shard: Callable[[Pieces, Shard], AbstractContextManager[PlannedShard]],
    pictures: Pictures,
    resources: Resources,
) -> None:
    """Writes shards in parallel and reports progress.

    A worker keeps its downloader, so that what it learned about a host, such as its robots.txt, serves the next shard.

    Args:
        pieces: the work folder, and who shares it.
        executor: makes the shards.
        shards: what `open_shard` takes.
        open_shard: opens one shard in the process that makes it. Can be pickled.
        pictures: how pictures are processed.
        resources: what the tasks may use.
    """
    share = share_of(resources.download, min(executor.num_at_once, len(shards)))
    write = partial(_write, pieces, open_shard, pictures, resources.store)
    open_downloader = partial(_open_downloader, share, pictures.opted_out, pieces, str(os.getpid()))
    written = track(
        executor.map(Step(open_downloader, write, _name_of), shards), what="ingest: shards", total=len(shards)
    )
    start, num_pairs, num_pictures, num_not_fetched, num_refused = time.monotonic(), 0, 0, 0, 0
    for number, counts in enumerate((one for one in written if one is not None), start=1):
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


def piece_of(folder: Path, name: str) -> Piece:
    """The files of a shard of data/raw, as a piece of the work folder."""
    return Piece(name, table_of(name), partial(files_beside_table, folder, name))


def _open_downloader(share: DownloadConfig, opted_out: OptedOut, pieces: Pieces, run: str) -> Downloader:
    """The downloader of a process; processes of one machine tell each other which hosts are slow."""
    slow_hosts = SlowHosts(pieces.here().folder / CLAIMS, run)
    return Downloader(share, refuse=opted_out.refusal, on_busy=slow_hosts)


def share_of(download: DownloadConfig, num_tasks: int) -> DownloadConfig:
    """The bounds of one task, chosen so that all that work at the same time obey `download`."""
    count = max(1, num_tasks)
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
    open_shard: Callable[[Pieces, Shard], AbstractContextManager[PlannedShard]],
    pictures: Pictures,
    store: StoreConfig,
    downloader: Downloader,
    shard: Shard,
) -> ShardCounts | None:
    """Writes one shard, unless it is complete."""
    pieces = pieces.here()
    name = str(getattr(shard, "name", shard))

    def make() -> ShardCounts:
        with open_shard(pieces, shard) as planned:
            fetch = partial(_fetch, downloader, name)
            return write_shard(pieces.folder, planned, pictures, fetch=fetch, keep_tar=partial(keep_tar, config=store))

    return pieces.make(piece_of(pieces.folder, name), make)


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
