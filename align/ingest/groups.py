"""Pictures of the web, fetched for some shards together: tasks divide the addresses by host.

One task has all addresses of a host, so the bounds of a host hold for any number of machines, and its robots.txt is
asked for once. A host with very many addresses is divided in parts, each with its share of these bounds. Where a
redirect leads to a host of another task, nobody follows it at once: the tasks of the next round ask there.

    web/STRETCH-SHARD.asks             addresses of a shard, by the slot of the host: a hash of its name
    web/STRETCH-ROUND-GROUP.answers    what a task got, by shard
    web/STRETCH-ROUND-GROUP.asks       and what it was redirected to, by slot

Memory holds one picture, and the addresses of a group.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from align.config.ingest import DownloadConfig
from align.display.console import say, track
from align.durable.files import write_text
from align.durable.pieces import Piece, Pieces
from align.durable.processes import in_threads
from align.durable.sections import Sizes, open_sections, sizes_of, write_sections
from align.durable.work import CLAIMS, key_of
from align.errors import DataError
from align.ingest.answers import FOLDER, Stretch, answers_piece, asks_file, read_answers, write_answers
from align.ingest.download import Ask, Downloader, Fetched, SlowHosts
from align.ingest.fetching import Answer, Pictures, addresses
from align.ingest.partition import PlannedShard
from align.interfaces.executor import Executor, Task
from align.services.executors.executors import LocalExecutor
from align.web.addresses import target_of

#: Opens a shard by its name. Can be pickled.
OpenShard = Callable[[Pieces, str], PlannedShard]

#: Of the addresses of a group: some ten thousand. A killed task has lost no more.
_GROUP_BYTES = 1 << 20
#: Slots for each shard, so that a slot has a part of a group's addresses.
_SLOTS_PER_SHARD = 4
#: Shards that are fetched together, at least. Their pictures are on the disk twice for a while.
_MIN_SHARDS = 16
_NUM_THREADS = 8
_PORT = re.compile(r":\d+$")
_PROGRESS_S = 10.0


class Group(NamedTuple):
    """The addresses of one task.

    Attributes:
        number: of the round.
        first, end: of its slots.
        part, num_parts: which part of a large host; parts share its bounds.
        num_slices: that are fetched one after the other. A killed task has lost one.
    """

    number: int
    first: int
    end: int
    part: int
    num_parts: int
    num_slices: int


def size_of_stretch(num_at_once: int) -> int:
    """How many shards are fetched together: enough work for all tasks."""
    return max(_MIN_SHARDS, 1 << (num_at_once - 1).bit_length())


@dataclass(frozen=True)
class Web:
    """Fetches from the web what shards need. Can be pickled.

    Attributes:
        pieces: the work folder, and who shares it.
        open_shard: opens one shard in the process that reads it.
        pictures: how pictures are processed.
        download: bounds of all requests together.
        run: names the run, see `SlowHosts`.
    """

    pieces: Pieces
    open_shard: OpenShard
    pictures: Pictures
    download: DownloadConfig
    run: str

    def stretch(self, number: int, size: int, missing: Sequence[str]) -> Stretch:
        """Stretch `number` of this size, of which these shards are missing.

        Which ones they are is kept until the stretch is complete, so that the next run after a kill finds its pieces.
        """
        name = f"{key_of(size, repr(self.pictures.text_cuts))[:12]}-{number:06d}"
        piece = Piece(name, f"{FOLDER}/{name}.json")
        path = self.pieces.folder / piece.last
        path.parent.mkdir(exist_ok=True)
        self.pieces.make(piece, lambda: write_text(path, json.dumps(missing)))
        self.pieces.bring([piece])
        return Stretch(name, number, tuple(json.loads(path.read_bytes())))

    def fetch(self, stretch: Stretch, executor: Executor, shards: Sequence[str], known: Sequence[str]) -> list[str]:
        """Fetches what the shards of a stretch need and pieces `known` have not. Returns all pieces with answers."""
        answers = [*known]
        none: Sizes = np.zeros(num_slots(stretch), np.int64)
        lists = executor if executor.is_cluster else LocalExecutor(1)  # a process takes longer to start than to list
        sizes = sum(lists.map(Task(nullcontext, partial(self._list, stretch, known)), shards), none)
        sources = [f"{stretch.name}-{name}" for name in stretch.shards]
        number = 0
        while sizes.any():
            most_parts = min(self.download.max_connections_per_host, executor.num_at_once)
            groups = divided(sizes, number, most_parts)
            at_once = min(executor.num_at_once, len(groups))
            task = partial(self._fetch, stretch, sources, at_once)
            done = executor.map(Task(nullcontext, task, _name_of), groups)
            sizes = sum(track(done, what="ingest: groups of hosts", total=len(groups)), none)
            sources = [name for group in groups for name in pieces_of(stretch, group)]
            answers += sources
            number += 1
        return answers

    @staticmethod
    def answers(
        pieces: Pieces, stretch: Stretch, groups: Sequence[str], shard: str, urls: Iterable[str]
    ) -> Iterator[Answer]:
        """What the web has answered for the addresses of a shard, and all pictures of the shard that were known.

        Raises:
            DataError: an answer is missing.
        """
        left = set(urls)
        for answer in read_answers(pieces, stretch, shard, groups):
            is_known = answer.outcome is not None and answer.data is not None  # kept though its texts may pass no more
            if answer.url in left or is_known:
                left.discard(answer.url)
                yield answer
        if left:
            raise DataError(f"shard {shard} of data/raw: {len(left):,} answers of the web are missing; run again")

    def remove(self, stretch: Stretch, groups: Sequence[str]) -> None:
        """Removes the pieces of a stretch whose shards are complete."""
        if self.pieces.shared is not None:
            names = [*(f"{stretch.name}-{name}" for name in stretch.shards), *groups, stretch.name]
            for _ in in_threads(self.pieces.shared.remove, names, _NUM_THREADS):
                pass
        self.clear()

    def clear(self) -> None:
        """Removes what is here of finished stretches, also of one that a killed run finished."""
        shutil.rmtree(self.pieces.folder / FOLDER, ignore_errors=True)

    def _list(self, stretch: Stretch, known: Sequence[str], scratch: Path | None, shard: str) -> Sizes:
        """Lists the addresses of a shard by slot, without those that are known; returns their bytes."""
        pieces, name = self.pieces.here(scratch), f"{stretch.name}-{shard}"

        def make() -> None:
            asks, position = _Asks(stretch), stretch.shards.index(shard)
            files = [(each, asks_file(each)) for each in known]
            streams = open_sections(pieces, files, len(stretch.shards), position, position + 1)
            answered = {json.loads(line) for stream in streams for line in stream}
            for url in addresses(self.open_shard(pieces, shard).rows(), self.pictures, set()):
                if url not in answered:
                    asks.add(position, Ask(url, url))
            asks.write(pieces.folder / asks_file(name))

        pieces.make(Piece(name, asks_file(name)), make)
        return sizes_of(pieces, name, asks_file(name), num_slots(stretch))

    def _fetch(
        self, stretch: Stretch, sources: Sequence[str], at_once: int, scratch: Path | None, group: Group
    ) -> Sizes:
        """Fetches a group; returns the bytes of the addresses that it was redirected to, by slot."""
        pieces, sizes = self.pieces.here(scratch), np.zeros(num_slots(stretch), np.int64)
        with Downloader(
            share_of(self.download, at_once, group.num_parts),
            refuse=self.pictures.opted_out.refusal,
            on_busy=SlowHosts(pieces.folder / CLAIMS, self.run),
            is_ours=lambda target: group.first <= slot_of(stretch, target.host) < group.end,
        ) as downloader:
            for number, name in enumerate(pieces_of(stretch, group)):
                asks = _asks_in(pieces, stretch, sources, group, number)
                piece = answers_piece(name)
                pieces.make(piece, partial(_get, pieces, stretch, name, asks, downloader))
                sizes += sizes_of(pieces, name, asks_file(name), num_slots(stretch))
        return sizes


def num_slots(stretch: Stretch) -> int:
    """By which hosts are divided."""
    return _SLOTS_PER_SHARD * max(_MIN_SHARDS, len(stretch.shards))


def slot_of(stretch: Stretch, host: str) -> int:
    """Of a host: both schemes and all ports of a name have the same."""
    return _hash(_PORT.sub("", host)) % num_slots(stretch)


def pieces_of(stretch: Stretch, group: Group) -> list[str]:
    """The names of the pieces that a group makes."""
    name = f"{stretch.name}-{group.number}-{group.first}-{group.part}.{group.num_parts}"
    return [f"{name}-{each}.{group.num_slices}" for each in range(group.num_slices)]


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


def divided(sizes: Sizes, number: int, most_parts: int) -> list[Group]:
    """Groups of about equal size, those of large hosts first.

    Args:
        sizes: bytes of addresses by slot.
        number: of the round.
        most_parts: of a host.
    """
    groups: list[Group] = []

    def close(first: int, end: int, size: int) -> None:
        num_full = max(1, size // _GROUP_BYTES)
        num_parts = min(num_full, most_parts)
        groups.extend(
            Group(number, first, end, part, num_parts, -(-num_full // num_parts)) for part in range(num_parts)
        )

    first = total = 0
    for slot, size in enumerate(sizes.tolist()):
        if total and total + size > _GROUP_BYTES:
            close(first, slot, total)
            first, total = slot, 0
        total += size
    if total:
        close(first, len(sizes), total)
    return sorted(groups, key=lambda group: -group.num_slices * group.num_parts)


class _Asks:
    """Addresses by slot: a line each, with the position of the shard in its stretch."""

    def __init__(self, stretch: Stretch) -> None:
        self._stretch = stretch
        self._lines: dict[int, list[bytes]] = defaultdict(list)

    def add(self, position: int, ask: Ask) -> None:
        try:
            host = target_of(ask.target).host
        except ValueError:
            host = ""
        self._lines[slot_of(self._stretch, host)].append(json.dumps([position, *ask]).encode() + b"\n")

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        count = num_slots(self._stretch)
        write_sections(path, count, (self._lines.get(slot, ()) for slot in range(count)))


def _asks_in(
    pieces: Pieces, stretch: Stretch, sources: Sequence[str], group: Group, number: int
) -> Iterator[tuple[int, Ask]]:
    """The addresses of a slice of a group."""
    files = [(name, asks_file(name)) for name in sources]
    for stream in open_sections(pieces, files, num_slots(stretch), group.first, group.end):
        for line in stream:
            position, *ask = json.loads(line)
            part, rest = _hash(ask[0]) % group.num_parts, _hash(ask[0]) // group.num_parts
            if part == group.part and rest % group.num_slices == number:
                yield position, Ask(*ask)


def _get(pieces: Pieces, stretch: Stretch, name: str, asks: Iterable[tuple[int, Ask]], downloader: Downloader) -> None:
    """Fetches addresses: what came, by shard, and what leads to hosts of other tasks, by slot."""
    positions: dict[str, int] = {}
    moved = _Asks(stretch)

    def urls() -> Iterator[Ask]:
        for position, ask in asks:
            positions[ask.url] = position
            yield ask

    def answers() -> Iterator[tuple[int, Answer]]:
        for fetched in _with_progress(downloader.fetch(urls())):
            position = positions.pop(fetched.url)
            if fetched.moved is None:
                yield position, Answer(fetched.url, fetched.data, fetched.error, fetched.retryable)
            else:
                moved.add(position, fetched.moved)

    write_answers(pieces, name, len(stretch.shards), answers())
    moved.write(pieces.folder / asks_file(name))


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


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _name_of(group: Group) -> str:
    return f"hosts {group.first} to {group.end - 1}" + (f", part {group.part}" if group.num_parts > 1 else "")
