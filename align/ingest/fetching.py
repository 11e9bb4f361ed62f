"""Asks the web for the pictures of a shard, within the bounds of a task, and has the shard written.

The bytes are spooled to disk in the order of their arrival. A redirect is followed to a host that the shard asks
anyway; what leads to another one is planned again, by that host.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from align.config.ingest import DownloadConfig
from align.display.console import say
from align.display.shares import percent
from align.durable.steps import Work
from align.formats.statuses import FAILED_TO_DOWNLOAD
from align.ingest.download import Ask, Downloader, Fetched
from align.ingest.examination import PictureOutcome
from align.ingest.scan import bare
from align.ingest.spool import Spool
from align.ingest.writing import Answer, Moved, OpenShards, ShardCounts, Shards, write_shard
from align.web.addresses import Target, target_of

_PROGRESS_S = 10.0


class Fetching(NamedTuple):
    """A shard to fetch: its number, and among how many lanes the bounds of its hosts are divided."""

    shard: int
    num_parts: int


@dataclass(frozen=True)
class Web:
    """What tasks need to fetch shards: they are `num_tasks` at a time. Can be pickled."""

    shards: Shards
    num_tasks: int

    @contextmanager
    def opened(self, work: Work) -> Iterator[OpenWeb]:
        """The same in a process, with the results on its machine."""
        with self.shards.opened(work) as kept, ExitStack() as stack:
            yield OpenWeb(kept, self.num_tasks, stack)


class OpenWeb:
    """What a process keeps between shards: connections, and what is known of hosts."""

    def __init__(self, kept: OpenShards, num_tasks: int, stack: ExitStack) -> None:
        self._kept, self._num_tasks, self._stack = kept, num_tasks, stack
        self._num_parts, self._hosts = 0, frozenset[str]()

    def write(self, out: Path, item: Fetching) -> ShardCounts:
        """Fetches a shard, then writes it."""
        with Spool(out) as spool:
            return write_shard(self._kept, out, item.shard, spool, self._fetch(item, spool))

    def _fetch(self, item: Fetching, spool: Spool) -> dict[str, Answer]:
        asks, of = [Ask(*ask) for ask in self._kept.pairs.asks(item.shard)], self._kept.of
        if item.num_parts != self._num_parts:
            self._stack.close()
            limits = share_of(of.download, self._num_tasks, item.num_parts)
            downloader = Downloader(limits, refuse=of.opted_out.refusal, is_ours=self._is_ours)
            self._downloader, self._num_parts = self._stack.enter_context(downloader), item.num_parts
        self._hosts = frozenset(_host_of(ask.target) for ask in asks)
        answers: dict[str, Answer] = {}
        for fetched in _with_progress(self._downloader.fetch(asks)):
            if fetched.moved is not None:
                answers[fetched.url] = Moved(fetched.moved.target, fetched.moved.num_redirects)
            elif fetched.data is None:
                answers[fetched.url] = PictureOutcome(FAILED_TO_DOWNLOAD, fetched.error, fetched.retryable)
            else:
                answers[fetched.url] = spool.add(fetched.data)
        return answers

    def _is_ours(self, target: Target) -> bool:
        return bare(target.host) in self._hosts


def write_fetched(web: OpenWeb, out: Path, item: Fetching) -> ShardCounts:
    """Writes a shard whose pictures the web has."""
    return web.write(out, item)


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
            say(f"ingest: {count:,} addresses, {percent(num_good / count)} fetched, {count / (now - start):,.0f}/s")
