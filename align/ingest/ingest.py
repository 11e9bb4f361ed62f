"""ingest: a source of image/text pairs -> data/raw, one row per pair, in img2dataset's layout.

Two steps, and after a kill the next run resumes both: the plan (`align.ingest.partition`: the shard of every pair),
then the shards (`align.ingest.fetching`). Both are tasks of `engine.runner`: of processes here, or of a cluster. A pair
without a picture is a row with a status; nothing is left out. A picture from the web is not fetched if no text of it
can pass the filter (`ingest.skip_hopeless`). `--retry-failed` tries pictures again whose failure may be temporary, and
fetches those skipped pictures whose text can pass today's rules. It uses the values with which data/raw was made
(`align.ingest.ending`).

Deviation from the paper: it starts from 1.8 billion pairs collected by others; how pages become pairs is our choice
(see `align.ingest.sources.pages`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.display.console import say, show
from align.display.report import record_runtime, write_report
from align.durable.files import link, replace_directory
from align.durable.pieces import Pieces
from align.durable.work import (
    CLAIMS,
    key_of,
    work_directory,
)
from align.errors import DataError
from align.formats.policy import read_opted_out
from align.formats.raw import (
    MANIFEST,
    RIGHTS,
    MadeWith,
    RawShard,
    Samples,
    image_spans,
    raw_shards,
    read_raw_manifest,
    read_table,
)
from align.formats.statuses import NOT_FETCHED
from align.ingest.earlier import earlier_shards
from align.ingest.ending import (
    DECIDING_NOTHING,
    DECIDING_VALUES,
    made_with,
    named_values,
    require_a_picture,
    say_result,
    tell_dvc,
    unknown_to_dvc,
    values_of_retry,
)
from align.ingest.examination import PictureOutcome
from align.ingest.fetching import Pictures
from align.ingest.forecast import forecast
from align.ingest.partition import FOLDER, PlannedRow, PlannedShard, make_plan, planned_shard
from align.ingest.report import IngestReport, summarise, write_page
from align.ingest.sources import open_source, require_seen_by_dvc
from align.ingest.sources.reading import is_local
from align.ingest.workers import Resources, piece_of, write_shards
from align.ingest.writer import write_raw_manifest
from align.interfaces.sql import Engine
from align.interfaces.store import Files
from align.pairs.text_cuts import TextCuts
from align.project import provenance
from align.services.dvc.outs import is_run_by_dvc, linked, require_stated_values, stage_of
from align.services.engine import open_engine
from align.services.executors.executors import LocalExecutor, open_executor
from align.services.files.file_lists import is_list
from align.services.files.files import StoreFiles
from align.services.s3.locations import is_s3
from align.services.s3.store import fetcher
from align.services.store_work import open_work


def num_to_fetch(shard: RawShard, text_cuts: TextCuts | None) -> int:
    """Pairs of a shard whose pictures `--retry-failed` fetches. Raises DataError if the table cannot be read."""
    states = read_table(shard, ["retryable", "status"])
    num_retryable = int(pc.sum(states["retryable"]).as_py() or 0)
    if not pc.any(pc.equal(states["status"], NOT_FETCHED)).as_py():
        return num_retryable
    rows = read_table(shard, ["url", "caption", "status"]).filter(pc.field("status") == NOT_FETCHED)
    urls, texts = rows["url"].to_pylist(), rows["caption"].to_pylist()
    wanted = {url for url, text in zip(urls, texts, strict=True) if text_cuts is None or text_cuts.can_pass(text)}
    return num_retryable + sum(url in wanted for url in urls)


def link_all(raw: Path, work: Path, except_shards: Sequence[RawShard]) -> None:
    """Puts hard links (or copies) of all files of `raw` into `work`, except these shards and the manifest."""
    names = {shard.name for shard in except_shards}
    for path in raw.iterdir():
        target, shard = work / path.name, path.name.partition(".")[0].removesuffix("_stats")
        if shard in names or path.name == MANIFEST or target.exists():
            continue
        if path.is_dir():  # a file that somebody put there stays
            shutil.copytree(path, target, copy_function=link)
        else:
            link(path, target)


@contextmanager
def shard_to_retry(pieces: Pieces, shard: RawShard) -> Iterator[PlannedShard]:
    """An existing shard as a planned one, in which all pairs but the retryable and not fetched ones have their outcome.

    Its `read` takes the key of a stored picture. Raises DataError if the shard cannot be read.
    """
    del pieces
    table = read_table(shard)
    with shard.local_tar().open("rb") as tar:
        spans = {key: (offset, size) for key, offset, size in image_spans(tar, str(shard.tar))}
        position_digits = len(table["key"][0].as_py()) - len(shard.name)
        has_rights = "licence" in pq.read_schema(shard.local_table()).names
        rows, read = partial(_rows, table), partial(_read, tar, spans)
        yield PlannedShard(shard.name, position_digits, rows, read, has_rights)


def _rows(table: pa.Table) -> Iterator[PlannedRow]:
    shared = [field.name for field in fields(PictureOutcome)]
    for row in table.to_pylist():
        is_open = row["retryable"] or row["status"] == NOT_FETCHED
        outcome = PictureOutcome(**{name: row[name] for name in shared})
        yield {
            **{name: row[name] for name in ("url", "text_source", "page_url", *RIGHTS)},
            **dict.fromkeys(("problem", "file", "offset", "inline", "http_status")),
            **dict.fromkeys(("status", "original_width", "original_height", "stated_sha256")),
            "text": row["caption"],
            "outcome": None if is_open else outcome,
            "failure": outcome if row["retryable"] else None,
        }


def _read(tar: BinaryIO, spans: dict[str, tuple[int, int]], key: str, offset: int | None) -> bytes | None:
    del offset
    if key not in spans:
        return None
    start, size = spans[key]
    tar.seek(start)
    return tar.read(size)


#: Modules that decide the bytes of data/raw. The downloader is not among them: after a repair of it, finished shards
#: need not be fetched again.
_DECIDING = ("align.ingest.partition", "align.ingest.fetching")


class Ingested(NamedTuple):
    """What an ingest made.

    Attributes:
        report: its numbers.
        changed: what of the source changed while it was read, as DVC names it.
    """

    report: IngestReport
    changed: list[str]


def ingest(
    config: IngestConfig,
    resources: Resources,
    *,
    archive: str,
    raw: Path,
    policy: Path,
    text_cuts: TextCuts | None = None,
) -> Ingested:
    """Writes data/raw, or resumes where an earlier run was killed.

    Args:
        config: the section.
        resources: requests, worker processes and the object store.
        archive: the location that `config.source` reads: files, folders, patterns, s3:// or https:// addresses.
        raw: the folder to write; it is replaced as a whole.
        policy: data/policy, for what must no longer be fetched.
        text_cuts: a picture is fetched from the web only if one of its texts can pass these; None: always.

    Raises:
        DataError: the source is missing, of another kind, damaged, or names no picture; or DVC keeps `raw`, and would
            not see all of the source.
        LockedError: another run is making the same folder.
        ServiceError: a server is unavailable.
    """
    download, engine = resources.download, resources.engine
    files = StoreFiles(resources.store, download)
    source = open_source(config, archive, files)
    if is_run_by_dvc() or stage_of(raw) is not None:
        require_seen_by_dvc(source, archive, raw)
    opted_out = read_opted_out(policy)
    # for DVC a folder also changes by files that this source may not read
    watched = [*source.inputs, *([f"{archive.rstrip('/')}/"] if Path(archive).is_dir() else [])]
    found = files.stamps(watched)
    stamps = [f"{file} {stamp}" for file, stamp in zip(source.inputs, found, strict=False)]
    entries = [[entry.kind, entry.value] for entry in opted_out.entries]
    images_from = "web" if config.source == "url_table" else config.images_from
    # The cuts are not in the key: another cut must not fetch finished shards again. The filter counts what it lacks.
    made = made_with(config, download, archive)
    values = [(f"{name}.{key}", value) for name in ("ingest", "download") for key, value in getattr(made, name).items()]
    values = [stated for stated in values if stated[0] not in DECIDING_NOTHING]
    key = key_of(provenance.digest(*_DECIDING), values, stamps, entries)
    shared = open_work(resources.store, engine.runner, "ingest", key)
    with work_directory(raw, "ingest", key) as work, open_executor(engine, work / CLAIMS) as executor:
        pieces = Pieces(work, shared)
        plan = make_plan(source, pieces, executor, partial(_open_duckdb, engine), opted_out, config)
        samples: Samples = "pairs" if config.pairs_as_samples else "images"
        pictures = Pictures(images_from, config.max_image_pixels, download, samples, opted_out, text_cuts)
        shards = [piece_of(work, name) for name in plan.names]
        before: Sequence[RawShard] = ()
        if config.reuse and images_from != "archive":
            folder = linked(raw, work / CLAIMS / "before") if is_run_by_dvc() else raw
            before = earlier_shards(folder, made, fetcher(resources.store))
        open_shard = partial(planned_shard, plan.position_digits, plan.has_rights, source)
        write_shards(pieces, executor, plan.names, open_shard, pictures, resources, before)
        pieces.bring(shards)
        write_raw_manifest(work, plan.names, samples, made)
        with _open_duckdb(engine) as sql:
            report = summarise(sql, work, plan.counts, len(source.files), plan.quarantined)
        shutil.rmtree(work / FOLDER)
    again = StoreFiles(resources.store, download)
    return Ingested(report, [] if _is_as_before(again, archive, dict(zip(watched, found, strict=True))) else [archive])


def _is_as_before(files: Files, archive: str, stamps: Mapping[str, str]) -> bool:
    """Whether what DVC looks at is still what was read; of a list, DVC does not look at the files on servers."""
    is_listing = is_s3(archive) and archive not in stamps and not is_list(archive, ())
    asked = [file for file in stamps if is_listing or archive in stamps or is_local(file)]
    try:
        if is_listing:
            files.list(archive, ("",))  # tells what a thousand files are in one answer
        return all(stamps[file] == now for file, now in zip(asked, files.stamps(asked), strict=True))
    except DataError:
        return False


def retry_failed(
    config: IngestConfig,
    resources: Resources,
    *,
    raw: Path,
    policy: Path,
    result: MadeWith | None,
    text_cuts: TextCuts | None = None,
) -> IngestReport:
    """Tries pictures of data/raw again whose failure may be temporary, and fetches some that were skipped.

    It fetches a skipped picture if one of its texts can pass `text_cuts`. Everything else stays as it is. If there is
    nothing to fetch, data/raw is not touched. Arguments and errors are those of `ingest`. `result` is what the new
    manifest says of the values (`made_with.values_of_retry`).
    """
    download = resources.download
    opted_out = read_opted_out(policy)
    shards = raw_shards(raw, fetcher(resources.store))
    counts = {shard.name: num_to_fetch(shard, text_cuts) for shard in shards}
    failed = [shard for shard in shards if counts[shard.name]]
    times = [shard.table.stat().st_mtime_ns for shard in shards]
    if failed:
        manifest = read_raw_manifest(raw)
        samples = "images" if manifest is None else manifest.samples
        entries = [[entry.kind, entry.value] for entry in opted_out.entries]
        code = provenance.digest(*_DECIDING, "align.ingest.ingest")
        key = key_of("retry", code, times, config, download, result, entries, samples)
        with work_directory(raw, None, key) as work:  # a folder of img2dataset stays one
            link_all(raw, work, except_shards=failed)
            say(f"ingest: retrying {sum(counts.values()):,} pairs of {len(failed):,} shards")
            pictures = Pictures("archive_then_web", config.max_image_pixels, download, samples, opted_out, text_cuts)
            executor = LocalExecutor(resources.engine.num_workers)
            write_shards(Pieces(work), executor, failed, shard_to_retry, pictures, resources)
            write_raw_manifest(work, [shard.name for shard in shards], samples, result)
    with _open_duckdb(resources.engine) as sql:
        return summarise(sql, raw, {}, 0)


def _open_duckdb(engine: EngineConfig) -> AbstractContextManager[Engine]:
    return open_engine(engine.model_copy(update={"runner": "local"}))


def _text_cuts(params: Params) -> TextCuts:
    """The filter's cuts by which a text alone is judged.

    DVC is not told that ingest reads them (`provenance.UNTRACKED`): another cut must not fetch the web again. The
    filter counts the pictures that it then lacks as `image_not_fetched`.
    """
    cuts = params.section(FilterConfig)
    return TextCuts(cuts.min_words, cuts.max_words, cuts.max_characters, cuts.drop_filenames)


def main(params: Params, args: argparse.Namespace) -> None:
    """`align ingest`."""
    paths = params.section(PathsConfig)
    outs = {"raw": paths.raw, "reports": paths.reports / "ingest"}
    engine, store = params.section(EngineConfig), params.section(StoreConfig)
    if args.plan:
        resources = Resources(params.section(DownloadConfig), engine, store)
        show(*forecast(params.section(IngestConfig), resources, paths.archive))
        return
    require_stated_values(params, DECIDING_VALUES, outs)
    with record_runtime("ingest", paths.runtime) as runtime:
        unknown = unknown_to_dvc(paths.raw, with_outs=True) if args.retry_failed else []
        if args.retry_failed:
            config, download, result = values_of_retry(params, named_values(args.overrides), paths.raw)
            report = retry_failed(
                config,
                Resources(download, engine, store),
                raw=paths.raw,
                policy=paths.policy,
                result=result,
                text_cuts=_text_cuts(params) if config.skip_hopeless else None,
            )
            changed = [each for each in unknown_to_dvc(paths.raw, with_outs=False) if each not in unknown]
        else:
            config = params.section(IngestConfig)
            report, changed = ingest(
                config,
                Resources(params.section(DownloadConfig), engine, store),
                archive=paths.archive,
                raw=paths.raw,
                policy=paths.policy,
                text_cuts=_text_cuts(params) if config.skip_hopeless else None,
            )
        with replace_directory(paths.reports / "ingest", "ingest") as folder:
            write_report(report, folder)
            write_page(report, folder)
        runtime["num_pairs"] = report.num_pairs
        say_result(report, paths.reports / "ingest")
        require_a_picture(report, paths.raw)
    tell_dvc(params, outs, unknown, changed)
