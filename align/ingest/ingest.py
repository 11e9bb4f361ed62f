"""ingest: a source of image/text pairs -> data/raw, one row per pair, in img2dataset's layout.

The order of work, in steps (`align.durable.steps`), so a killed run resumes:

  1. scan      each file of the source is a task: its pairs, and the responses that an archive holds
  2. before    each shard of the data/raw before is a task: what is known of an address (`ingest.reuse`)
  3. plan      SQL: the shard of every pair, and where its picture is
  4. write     each lane of shards is a task: asks the web, and writes; what leads to other hosts is planned again
  5. publish   the shards, their manifest, and the report

`engine.runner` says who does the tasks: processes here, or a cluster. A pair without a picture is a row with a status;
nothing is left out. A picture from the web is not fetched if no text of it can pass the filter
(`ingest.skip_hopeless`). `align ingest` again asks for pictures whose failure may be temporary, and for those skipped
pictures whose text can pass today's rules; the scan is still there.

Deviation from the paper: it starts from 1.8 billion pairs collected by others; how pages become pairs is our choice
(see `align.ingest.sources.pages`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.ingest import DownloadConfig, IngestConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.display.report import record_runtime, write_report
from align.durable.files import replace_directory
from align.durable.steps import Work
from align.durable.work import SCRATCH, finish, is_finished, key_of, result_of, work_directory
from align.errors import DataError
from align.formats.policy import REFUSED, read_opted_out
from align.formats.raw import RawShard, kept_scan
from align.ingest.ending import (
    DECIDING_NOTHING,
    DECIDING_VALUES,
    made_with,
    require_a_picture,
    say_how_to_keep,
    say_result,
)
from align.ingest.lanes import publish, write_from_source, write_from_web
from align.ingest.plan import Plan, Planner
from align.ingest.report import IngestReport, summarise, write_page
from align.ingest.scan import Scan, keep_scan
from align.ingest.sources import open_source, require_seen_by_dvc
from align.ingest.sources.outcomes import in_words
from align.ingest.sources.raw_before import Before, shards_before
from align.ingest.sources.reading import is_local
from align.ingest.writing import Shards
from align.interfaces.sql import Engine
from align.interfaces.store import Files
from align.pairs.text_cuts import TextCuts
from align.project import provenance
from align.services.dvc.outs import is_run_by_dvc, linked, require_stated_values, stage_of
from align.services.engine import open_engine
from align.services.executors.executors import open_executor
from align.services.files.file_lists import is_list
from align.services.files.files import StoreFiles
from align.services.s3.locations import is_s3
from align.services.store_work import open_work

#: Modules that decide the bytes of data/raw. The downloader is not among them: after a repair of it, finished shards
#: need not be fetched again.
_DECIDING = ("align.ingest.plan", "align.ingest.writing")


@dataclass(frozen=True)
class Resources:
    """What a run may use.

    Attributes:
        download: bounds of requests to the web; tasks share them.
        engine: who does the tasks, and bounds of the sort.
        store: access to s3://, and where tars are kept.
    """

    download: DownloadConfig
    engine: EngineConfig
    store: StoreConfig


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
    kept, store = kept_scan(raw) / key, resources.store
    with work_directory(raw, "ingest", key) as folder, open_executor(engine, folder / SCRATCH) as executor:
        if not is_finished(folder):
            shards: Sequence[RawShard] = ()
            if config.reuse and images_from != "archive":
                shards = shards_before(_before(raw, folder), made, store, DECIDING_NOTHING)
            # a store keeps the shards that were made with a key: not those before which failures are asked for again
            of_before = key_of(key, [shard.table_sha256 for shard in shards]) if shards else key
            work = Work(folder, open_work(store, engine.runner, "ingest", of_before))
            scan = Scan(source, opted_out, images_from != "archive")
            counts, left_out = scan.run(work, executor, config.max_damaged_share, kept)
            before = Before(work, store, shards)
            before.read(executor)
            open_sql = partial(_open_duckdb, engine)
            planner = Planner(work, open_sql, config, images_from, download.obey_robots, text_cuts, before)
            plan: Plan | None = planner.first()
            plans: list[Plan] = []
            while plan is not None:
                if not plan.num_pairs:
                    why = "; ".join(in_words(counts)) or "they hold nothing"
                    num_files = f"{len(source.files):,} file(s)"
                    raise DataError(f"{source.files[0]}: the {num_files} of this source name no picture: {why}")
                plans.append(plan)
                write = write_from_source if images_from == "archive" else write_from_web
                write(work, Shards(plan, source, config.max_image_pixels, download, opted_out, store), executor)
                plan = planner.next(plan)
            publish(folder, plans, made)
            with open_sql() as sql:
                report = summarise(sql, folder, counts, len(source.files), left_out)
            if REFUSED in report.errors:  # the scan has the texts of these pairs
                shutil.rmtree(kept.parent, ignore_errors=True)
            else:
                keep_scan(work, kept, left_out)
            finish(folder, [folder], report.model_dump_json())
        Work(folder).drop(one.name for one in folder.iterdir() if one.is_dir() and one.name != SCRATCH)
        report = IngestReport.model_validate_json(result_of(folder))
    again = StoreFiles(resources.store, download)
    return Ingested(report, [] if _is_as_before(again, archive, dict(zip(watched, found, strict=True))) else [archive])


def _before(raw: Path, folder: Path) -> Path:
    """The data/raw before; DVC removes it before it runs the stage, and has its files."""
    if not is_run_by_dvc():
        return raw
    shutil.rmtree(folder / SCRATCH / "before", ignore_errors=True)  # of a killed run
    return linked(raw, folder / SCRATCH / "before")


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
    del args
    paths = params.section(PathsConfig)
    outs = {"raw": paths.raw, "reports": paths.reports / "ingest"}
    engine, store = params.section(EngineConfig), params.section(StoreConfig)
    require_stated_values(params, DECIDING_VALUES, outs)
    with record_runtime("ingest", paths.runtime) as runtime:
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
    say_how_to_keep(outs, changed)
