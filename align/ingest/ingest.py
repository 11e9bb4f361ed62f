"""ingest: a source of image/text pairs -> data/raw, one row a pair, in img2dataset's layout.

Two steps, both resumed by the next run after a kill: the plan (`align.ingest.plan`: every pair, sorted into
shards), then the shards (`align.ingest.fetching`), in worker processes here or in ranges (`--shards 0-499`) on
other machines that share the folder. What has no picture is a row with a status; nothing is left out. `--retry-failed`
asks again for the pictures that failed for a reason that may pass, and for nothing else.

Deviation from the paper: it starts from 1.8 billion pairs collected by others; how pages become pairs is our choice
(see `align.ingest.sources.pages`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from align import provenance
from align.config.download import DownloadConfig
from align.config.engine import EngineConfig
from align.config.ingest import IngestConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.config.store import StoreConfig
from align.console import say, track
from align.formats.policy import read_opted_out
from align.formats.raw import RawShard, raw_shards
from align.ingest.download import Downloader
from align.ingest.fetching import Answer, Pictures, write_shard
from align.ingest.plan import Plan, make_plan
from align.ingest.report import IngestReport, summarise, write_pages
from align.ingest.retry import OldShard, link_all, num_retryable
from align.ingest.sources import Source, open_source
from align.ingest.writer import write_raw_manifest
from align.protocols.sql import Engine
from align.report import record_runtime, write_report
from align.services.engine import open_engine
from align.services.store import fetcher, keep_tar, open_files
from align.work import Part, add_part_arguments, in_processes_with, key_of, part_of, require_done, work_directory

#: Modules that decide the bytes of data/raw. How pictures are fetched is not among them: a mended downloader need not
#: fetch again what is there.
_DECIDING = ("align.ingest.plan", "align.ingest.fetching")


@dataclass(frozen=True)
class _Task:
    """What a worker process needs to make any shard. Picklable."""

    folder: Path
    plan: Plan
    source: Source
    pictures: Pictures
    store: StoreConfig


def ingest(
    config: IngestConfig,
    download: DownloadConfig,
    engine: EngineConfig,
    store: StoreConfig,
    *,
    archive: str,
    raw: Path,
    policy: Path,
    part: Part | None = None,
) -> IngestReport | None:
    """Writes data/raw anew, or goes on where an earlier run was killed.

    Args:
        config: the section.
        download: bounds of requests; where worker processes share a host, each has its part of them.
        engine: workers, and bounds of the sort.
        store: how s3:// is spoken to, and where tars go.
        archive: what `config.source` says: files, folders, patterns, s3:// addresses.
        raw: the folder to write; replaced as a whole.
        policy: data/policy, for what must not be fetched any more.
        part: only some shards of the work; None: all, and the output.

    Returns:
        The report; None where only a range of shards was made.

    Raises:
        DataError: the source is missing, not what it should be, damaged, or names no picture.
        LockedError: another run is making the same folder.
        ServiceError: a server is away.
    """  # fmt: skip
    part = part or Part()
    files = open_files(store)
    source = open_source(config, archive, files)
    opted_out = read_opted_out(policy)
    stamps = [f"{file} {files.stamp(file)}" for file in source.inputs]
    key = key_of(
        provenance.digest(*_DECIDING), config, download, stamps, [[one.kind, one.value] for one in opted_out.entries]
    )
    with work_directory(raw, key, part) as work:
        plan = make_plan(
            source, work / "plan", partial(_open_sql, engine), max_pages=config.max_pages,
            shard_size=config.shard_size, num_workers=engine.num_workers,
        )  # fmt: skip
        images_from = "web" if config.source == "url_table" else config.images_from
        pictures = Pictures(
            images_from, config.max_image_pixels, download.resize_px, download.jpeg_quality, opted_out
        )  # fmt: skip
        numbers = [name for name in plan.names if part.shards is None or int(name) in part.shards]
        if part.finish:
            require_done("ingest", plan.names, partial(_done, work))
        todo = [name for name in numbers if not _done(work, name)]
        if len(todo) < len(numbers):
            say(f"ingest: {len(numbers) - len(todo):,} of {len(numbers):,} shards are there already")
        share = _shared(download, engine, len(todo))
        _make(_Task(work, plan, source, pictures, store), partial(Downloader, share), todo, engine)
        if part.shards is not None:
            return None
        write_raw_manifest(work, plan.names)
        with open_engine(engine.model_copy(update={"runner": "duckdb"})) as sql:
            report = summarise(sql, work, plan.counts, len(source.files))
        shutil.rmtree(plan.table.parent)
    return report


def retry_failed(
    download: DownloadConfig, engine: EngineConfig, store: StoreConfig, *, raw: Path, policy: Path, max_pixels: int
) -> IngestReport:
    """Asks again for the pictures of data/raw whose failure may pass; all else stays as it is.

    Arguments and errors as of `ingest`. Nothing retryable: data/raw is not touched.
    """
    opted_out = read_opted_out(policy)
    shards = raw_shards(raw, fetcher(store))
    todo = [shard for shard in shards if num_retryable(shard)]
    key = key_of("retry", provenance.digest(*_DECIDING), [shard.table.stat().st_mtime_ns for shard in shards], download)
    if todo:
        with work_directory(raw, key) as work:
            link_all(raw, work, except_shards=todo)
            say(f"ingest: {sum(map(num_retryable, todo)):,} pairs of {len(todo):,} shards are tried again")
            left = [shard for shard in todo if not _done(work, shard.name)]
            pictures = Pictures("archive_then_web", max_pixels, download.resize_px, download.jpeg_quality, opted_out)
            share = _shared(download, engine, len(left))
            retry = partial(_retry_shard, work, pictures, store)
            list(in_processes_with(partial(Downloader, share), retry, left, engine.num_workers))
            write_raw_manifest(work, [shard.name for shard in shards])
    with open_engine(engine.model_copy(update={"runner": "duckdb"})) as sql:
        return summarise(sql, raw, {}, 0)


def _open_sql(engine: EngineConfig) -> AbstractContextManager[Engine]:
    return open_engine(engine.model_copy(update={"runner": "duckdb"}))


def _done(work: Path, name: str) -> bool:
    return (work / f"{name}.parquet").exists()


def _shared(download: DownloadConfig, engine: EngineConfig, num_shards: int) -> DownloadConfig:
    """The bounds of one worker process: a host must not see them once for each."""
    count = max(1, min(engine.num_workers or os.cpu_count() or 1, num_shards))
    rate = download.max_requests_per_host_per_s
    return download.model_copy(update={
        "max_connections": max(1, download.max_connections // count),
        "max_connections_per_host": max(1, download.max_connections_per_host // count),
        "max_requests_per_host_per_s": None if rate is None else rate / count,
    })  # fmt: skip


def _make(task: _Task, downloader: Callable[[], Downloader], names: list[str], engine: EngineConfig) -> None:
    """Makes shards side by side and says how it goes.

    A worker keeps its downloader: what one shard learnt of a host, such as its robots.txt, holds for the next.
    """
    start, pairs, successes = time.monotonic(), 0, 0
    made = in_processes_with(downloader, partial(_make_shard, task), names, engine.num_workers)
    for count, (num_pairs, num_good) in enumerate(track(made, what="ingest: shards", total=len(names)), start=1):
        pairs, successes = pairs + num_pairs, successes + num_good
        spent = time.monotonic() - start
        left = spent / count * (len(names) - count)
        say(
            f"ingest: {count:,} of {len(names):,} shards, {pairs:,} pairs, {successes / max(1, pairs):.1%} with a "
            f"picture, {pairs / max(spent, 1e-9):,.0f} pairs/s, {left / 60:,.1f} min left"
        )


def _make_shard(task: _Task, downloader: Downloader, name: str) -> tuple[int, int]:
    write_shard(
        task.folder, name, task.plan.place_digits, partial(task.plan.rows, name), read=task.source.read,
        fetch=partial(_fetch, downloader, name), pictures=task.pictures,
        keep_tar=partial(keep_tar, config=task.store),
    )  # fmt: skip
    return _count(task.folder, name)


def _retry_shard(
    work: Path, pictures: Pictures, store: StoreConfig, downloader: Downloader, shard: RawShard
) -> tuple[int, int]:
    with OldShard(shard) as old:
        write_shard(
            work, shard.name, old.place_digits, old.rows, read=old.read, fetch=partial(_fetch, downloader, shard.name),
            pictures=pictures, keep_tar=partial(keep_tar, config=store),
        )  # fmt: skip
    return _count(work, shard.name)


def _count(folder: Path, name: str) -> tuple[int, int]:
    """(pairs, pairs with a picture) of a shard."""
    stats = json.loads((folder / f"{name}_stats.json").read_bytes())
    return stats["count"], stats["successes"]


def _fetch(downloader: Downloader, name: str, urls: Iterable[str]) -> Iterator[Answer]:
    """The web's answers, with a line on how it goes every ten seconds."""
    start = last = time.monotonic()
    count = good = 0
    for answer in downloader.fetch(urls):
        count, good = count + 1, good + (answer.data is not None)
        yield answer
        now = time.monotonic()
        if now - last >= 10:
            last = now
            say(f"ingest: shard {name}: {count:,} addresses, {good / count:.1%} good, {count / (now - start):,.0f}/s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments beyond the common ones."""
    add_part_arguments(parser)
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again for the pictures whose failure may pass, nothing else"
    )


def main(params: Params, args: argparse.Namespace) -> None:
    """`align ingest`."""
    config, paths = params.section(IngestConfig), params.section(PathsConfig)
    sections = (params.section(DownloadConfig), params.section(EngineConfig), params.section(StoreConfig))
    with record_runtime("ingest", paths.runtime) as runtime:
        if args.retry_failed:
            max_pixels = config.max_image_pixels
            report: Any = retry_failed(*sections, raw=paths.raw, policy=paths.policy, max_pixels=max_pixels)
        else:
            part = part_of(args)
            report = ingest(config, *sections, archive=paths.archive, raw=paths.raw, policy=paths.policy, part=part)
        if report is None:
            say(f"ingest: shards {args.shards} are done; `align ingest --finish` makes {paths.raw} when all are")
            return
        write_report(report, paths.reports / "ingest")
        write_pages(report, paths.reports / "ingest")
        runtime["num_pairs"] = report.num_pairs
    failed = report.num_pairs - report.statuses.get("success", 0)
    say(
        f"ingest: {report.num_pairs:,} pairs of {report.num_images:,} images from {report.num_pages:,} pages; "
        f"{failed:,} without a picture, {report.num_retryable:,} of them for a reason that may pass"
    )
    if args.retry_failed:
        say("ingest: `dvc commit ingest` keeps this data/raw; otherwise `dvc repro` fetches everything anew")
    if report.num_truncated_files:
        say(f"ingest: warning: {report.num_truncated_files} archive file(s) cut off; only the readable part was taken")
