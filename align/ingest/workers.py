"""The tasks of `align ingest` that make shards: each writes one, after others have asked the web."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig
from align.display.console import say, track
from align.durable.pieces import Piece, Pieces
from align.formats.raw import RawShard
from align.ingest.answers import Stretch
from align.ingest.earlier import Earlier
from align.ingest.fetching import Answer, Pictures, ShardCounts, write_shard
from align.ingest.groups import OpenShard, Web, size_of_stretch
from align.ingest.writer import files_beside_table, table_of
from align.interfaces.executor import Executor, Task
from align.services.s3.store import keep_tar


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
    shards: Sequence[str],
    open_shard: OpenShard,
    pictures: Pictures,
    resources: Resources,
    earlier: Sequence[RawShard] = (),
) -> None:
    """Writes those shards that are not complete in parallel, and reports progress.

    Args:
        pieces: the work folder, and who shares it.
        executor: makes the shards.
        shards: the names of all.
        open_shard: opens one shard in the process that makes it.
        pictures: how pictures are processed.
        resources: what the tasks may use.
        earlier: shards of a data/raw whose answers need not be asked for.
    """
    missing = {piece.name for piece in pieces.missing([piece_of(pieces.folder, shard) for shard in shards])}
    if len(missing) < len(shards):
        say(f"ingest: resuming: {len(shards) - len(missing):,} of {len(shards):,} shards exist")
    web = Web(pieces, open_shard, pictures, resources.download, str(os.getpid()))
    written = _written(partial(_write, web, resources.store), web, earlier, executor, shards, missing)
    written = track(written, what="ingest: shards", total=len(missing))
    start, num_pairs, num_pictures, num_not_fetched = time.monotonic(), 0, 0, 0
    for number, counts in enumerate((one for one in written if one is not None), start=1):
        num_pairs, num_pictures = num_pairs + counts.num_pairs, num_pictures + counts.num_with_picture
        num_not_fetched += counts.num_not_fetched
        skipped = f", {num_not_fetched:,} not fetched" if num_not_fetched else ""
        spent_s = time.monotonic() - start
        left_s = spent_s / number * (len(missing) - number)
        say(
            f"ingest: {number:,} of {len(missing):,} shards, {num_pairs:,} pairs{skipped}, "
            f"{num_pictures / max(1, num_pairs - num_not_fetched):.1%} with a picture, "
            f"{num_pairs / max(spent_s, 1e-9):,.0f} pairs/s, {left_s / 60:,.1f} min left"
        )


def piece_of(folder: Path, name: str) -> Piece:
    """The files of a shard of data/raw, as a piece of the work folder."""
    return Piece(name, table_of(name), partial(files_beside_table, folder, name))


def _written(
    write: partial[ShardCounts | None],
    web: Web,
    earlier: Sequence[RawShard],
    executor: Executor,
    shards: Sequence[str],
    missing: set[str],
) -> Iterator[ShardCounts | None]:
    """Writes shards; what they need from the web is fetched before, for a stretch of them at a time."""
    size = len(shards) if web.pictures.images_from == "archive" else size_of_stretch(executor.num_at_once)
    before = Earlier(web.pieces, len(shards), size)
    if earlier and missing:
        before.read(earlier, executor)
    for start in range(0, len(shards), size):
        some = shards[start : start + size]
        left = [shard for shard in some if shard in missing]
        if web.pictures.images_from == "archive":
            yield from executor.map(Task(nullcontext, partial(write, None, ()), _name_of), left)
        elif left:
            stretch = web.stretch(start // size, size, left)
            known = before.answer(stretch, earlier, executor)
            needed = [shard for shard in some if shard in stretch.shards]
            answers = web.fetch(stretch, executor, needed, known)
            yield from executor.map(Task(nullcontext, partial(write, stretch, answers), _name_of), left)
            web.remove(stretch, answers)
    web.clear()


def _write(
    web: Web, store: StoreConfig, stretch: Stretch | None, answers: Sequence[str], scratch: Path | None, name: str
) -> ShardCounts | None:
    """Writes a shard, unless it is complete, with these answers of the web."""
    pieces = web.pieces.here(scratch)

    def fetch(urls: Iterable[str]) -> Iterator[Answer]:
        return iter(()) if stretch is None else web.answers(pieces, stretch, answers, name, urls)

    def make() -> ShardCounts:
        planned, keep = web.open_shard(pieces, name), partial(keep_tar, config=store)
        return write_shard(pieces.folder, planned, web.pictures, fetch=fetch, keep_tar=keep)

    return pieces.make(piece_of(pieces.folder, name), make)


def _name_of(shard: str) -> str:
    return f"shard {shard} of data/raw"
