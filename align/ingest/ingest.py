"""ingest: a source of image/text pairs -> data/raw, one row per pair, in img2dataset's layout.

Two steps, and after a kill the next run resumes both: the plan (`align.ingest.partition`: the shard of every pair),
then the shards (`align.ingest.fetching`). Both are tasks of `engine.runner`: of processes here, or of a cluster. A pair
without a picture is a row with a status; nothing is left out. A picture from the web is not fetched if no text of it
can pass the filter (`ingest.skip_hopeless`). `align ingest` again asks for pictures whose failure may be temporary, and
for those skipped pictures whose text can pass today's rules (`ingest.reuse`); the plan is still there
(`align.ingest.partition`).

Deviation from the paper: it starts from 1.8 billion pairs collected by others; how pages become pairs is our choice
(see `align.ingest.sources.pages`).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
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
from align.durable.pieces import Pieces
from align.durable.work import (
    CLAIMS,
    key_of,
    work_directory,
)
from align.errors import DataError
from align.formats.policy import REFUSED, read_opted_out
from align.formats.raw import RawShard, kept_plan
from align.ingest.earlier import earlier_shards
from align.ingest.ending import (
    DECIDING_NOTHING,
    DECIDING_VALUES,
    made_with,
    require_a_picture,
    say_how_to_keep,
    say_result,
)
from align.ingest.fetching import Pictures
from align.ingest.partition import FOLDER, keep_plan, make_plan, planned_shard
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
from align.services.executors.executors import open_executor
from align.services.files.file_lists import is_list
from align.services.files.files import StoreFiles
from align.services.s3.locations import is_s3
from align.services.s3.store import fetcher
from align.services.store_work import open_work

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
    kept = kept_plan(raw) / key
    with work_directory(raw, "ingest", key) as work, open_executor(engine, work / CLAIMS) as executor:
        before: Sequence[RawShard] = ()
        if config.reuse and images_from != "archive":
            folder = linked(raw, work / CLAIMS / "before") if is_run_by_dvc() else raw
            before = earlier_shards(folder, made, fetcher(resources.store))
        # a store keeps the shards that were made with a key: not those before which failures are asked for again
        of_before = key_of(key, [shard.table_sha256 for shard in before]) if before else key
        pieces = Pieces(work, open_work(resources.store, engine.runner, "ingest", of_before))
        plan = make_plan(source, pieces, executor, partial(_open_duckdb, engine), opted_out, config, kept)
        pictures = Pictures(images_from, config.max_image_pixels, download, opted_out, text_cuts)
        shards = [piece_of(work, name) for name in plan.names]
        open_shard = partial(planned_shard, plan.position_digits, plan.has_rights, source)
        write_shards(pieces, executor, plan.names, open_shard, pictures, resources, before)
        pieces.bring(shards)
        write_raw_manifest(work, plan.names, made)
        with _open_duckdb(engine) as sql:
            report = summarise(sql, work, plan.counts, len(source.files), plan.quarantined)
        if REFUSED in report.errors:  # the plan has the texts of these pairs
            shutil.rmtree(kept.parent, ignore_errors=True)
        else:
            keep_plan(work, kept)
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
