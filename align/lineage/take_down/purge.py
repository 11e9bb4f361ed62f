"""Removes what a `PurgePlan` names: from the checkout, the store of tars, DVC's cache and its remotes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.durable.files import leftovers, write_text
from align.durable.locks import tried
from align.errors import AlignError
from align.formats.features import files_of
from align.formats.filtered import DECISIONS, parts_of
from align.formats.indexed_images import ITEMS
from align.formats.policy import OPTED_OUT
from align.formats.verdict import SHARDS
from align.lineage.take_down.purge_plan import PurgePlan, opted_out_pairs, stage_of, telling_reports
from align.lineage.take_down.purge_raw import purge_raw
from align.lineage.take_down.stored_tars import stored_tars
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.shard_samples import filtered_shows, index_shows, shards_show
from align.services.s3.store import Objects, fetcher, keep_tar

#: This file exists while a purge is under way: data/raw may no longer tell what the rest still shows.
_BEGUN = Path(".align/purging")


@dataclass(frozen=True)
class PurgeResult:
    """What was removed from one place, such as a folder or a remote.

    Attributes:
        where: the place.
        removed: what was removed, in words.
        left: why something is still there; empty if nothing is.
    """

    where: str
    removed: str
    left: str = ""


def purge(versions: DataVersions, plan: PurgePlan, paths: PathsConfig, store: StoreConfig) -> Iterator[PurgeResult]:
    """Removes the pictures and texts, place by place. A second run continues where the first one had to stop."""
    stage = stage_of(versions.runs(), paths.raw.as_posix())
    old_tars = _tars_of(versions, plan.doomed.versions) | _tars_here(paths) if store.objects is not None else set()
    pending = plan.pairs.to_purge or _BEGUN.is_file()
    if pending:
        write_text(_BEGUN, "")
    yield from _purge_checkout(plan, paths, store, pending=pending)
    if measured := files_of(store.features, plan.image_ids):
        for file in measured:
            file.unlink(missing_ok=True)
        what = f"{len(measured):,} files of measured values; `align filter` measures them again, without the pictures"
        yield PurgeResult(f"{store.features}", what)
    now: dict[str, str] = {}
    if pending and stage is not None:
        yield _commit(versions, stage, paths)
        now = versions.files_in_checkout(paths.raw.as_posix())
    if store.objects is not None:
        kept = _tars_here(paths) | _tars_of(versions, plan.doomed.clean_versions)
        yield _purge_store(Objects(store), sorted(old_tars - kept))
    for one in versions.remove(plan.doomed.to_remove(now)):
        left = f"{len(one.left):,} objects: {next(iter(one.left.values()))}" if one.left else ""
        yield PurgeResult(one.where, f"{len(one.removed):,} objects", left)
    _BEGUN.unlink(missing_ok=True)
    for name, why in versions.unreachable.items():
        yield PurgeResult(f"DVC remote '{name}'", "nothing", why)
    for other in versions.other_checkouts():
        if opted_out_pairs(other / paths.raw, plan.opted_out).to_purge or _shards_show(
            other / paths.shards, plan, store
        ):
            yield PurgeResult(f"{other}", "nothing", "another checkout with data of its own; purge there, or remove it")


def _purge_checkout(plan: PurgePlan, paths: PathsConfig, store: StoreConfig, *, pending: bool) -> Iterator[PurgeResult]:
    shown = pending
    if parts_of(paths.filtered, DECISIONS) and (shown or filtered_shows(paths.filtered, plan.texts)):
        yield _remove_folder(paths.filtered)
        shown = True
    if pending:
        yield _purge_raw(plan, paths, store)
    if _shards_show(paths.shards, plan, store):
        yield _remove_folder(paths.shards)
        shown = True
    if (paths.index / ITEMS).is_file() and index_shows(paths.index, plan.image_ids, plan.opted_out):
        yield _remove_folder(paths.index)
        shown = True
    if shown and (files := telling_reports(paths.reports, plan.texts)):
        for file in files:
            file.unlink()
        yield PurgeResult(f"{paths.reports}", f"{len(files):,} pages and pictures; `dvc repro` makes them again")
    for folder in (paths.raw, paths.filtered, paths.shards, paths.index, paths.reports / SHARDS):
        work = folder.with_name(f".{folder.name}.part")
        for leftover in (work, folder.with_name(f".{folder.name}.old"), *leftovers(folder)):
            if leftover.is_dir():
                yield _remove_leftover(leftover, folder.with_name(f".{folder.name}.lock"))


def _purge_raw(plan: PurgePlan, paths: PathsConfig, store: StoreConfig) -> PurgeResult:
    tars = stored_tars(paths.raw)
    tar_of = (lambda name: Objects(store).get(*tars[f"{name}.tar"])) if store.objects is not None else None
    keep = partial(keep_tar, config=store)
    names = purge_raw(paths.raw, plan.opted_out, plan.pairs, tar_of=tar_of, keep_tar=keep)
    what = f"{len(plan.pairs.gone):,} pictures and the texts of {plan.pairs.num_pairs:,} pairs"
    return PurgeResult(f"{paths.raw}", f"{what}, out of {len(names):,} rewritten shards")


def _remove_folder(folder: Path) -> PurgeResult:
    shutil.rmtree(folder)
    return PurgeResult(f"{folder}", "the whole folder; `dvc repro` makes it again")


def _remove_leftover(leftover: Path, lock: Path) -> PurgeResult:
    with tried(lock) as ours:  # as `align.durable.work` locks it
        if not ours:
            return PurgeResult(f"{leftover}", "nothing", "a run is working there; wait for it, or end it")
        shutil.rmtree(leftover)
    return PurgeResult(f"{leftover}", "what a killed run had left")


def _shards_show(shards: Path, plan: PurgePlan, store: StoreConfig) -> bool:
    return (shards / "manifest.json").is_file() and shards_show(shards, plan.image_ids, fetcher(store))


def _commit(versions: DataVersions, stage: str, paths: PathsConfig) -> PurgeResult:
    where = f"dvc.lock, stage {stage}"
    try:
        done = versions.commit(stage, (paths.policy / OPTED_OUT).as_posix())
    except AlignError as error:
        return PurgeResult(where, "nothing", str(error))
    removed = "the old data/raw" if done else f"nothing: {stage} is stale and runs again at `dvc repro`"
    return PurgeResult(where, removed)


def _purge_store(objects: Objects, tars: list[str]) -> PurgeResult:
    where, removed = f"store of tars {objects.config.objects}", 0
    try:
        for sha256 in tars:
            objects.delete(sha256)
            removed += 1
    except AlignError as error:
        return PurgeResult(where, f"{removed:,} tars", f"{len(tars) - removed:,} tars: {error}")
    return PurgeResult(where, f"{removed:,} tars")


def _tars_here(paths: PathsConfig) -> set[str]:
    """sha256s of the tars of the checkout."""
    return {sha256 for folder in (paths.raw, paths.shards) for sha256, _ in stored_tars(folder).values()}


def _tars_of(versions: DataVersions, chosen: Iterable[tuple[str, str]]) -> set[str]:
    """sha256s of the tars of recorded versions (path, md5)."""
    folders = (versions.lay_out(md5, "manifest.json") for _, md5 in chosen)
    return {sha256 for folder in folders if folder is not None for sha256, _ in stored_tars(folder).values()}
