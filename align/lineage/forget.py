"""forget: take-downs. What people asked to forget is recorded for good, and its bytes are purged on request.

Recorded in data/policy/opted_out.csv, which `align ingest` and `align filter` obey; the next `dvc repro` drops the
pairs (reason `opted_out`) and makes anew what comes after. Keys are numbered anew by every ingest, so a key is recorded
as the address and the sha256 of its picture.

`--purge` removes the pictures themselves: from data/raw, data/shards, data/index and report pages, from every earlier
version of these that git or DVC's run cache knows (local cache and all remotes), and from the store of tars. That ends
those versions: they cannot be checked out any more. Each place is named, with what went and what could not.
"""

from __future__ import annotations

import argparse
import fcntl
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from align.config import Params
from align.config.paths import PathsConfig
from align.config.register import RegisterConfig
from align.config.store import StoreConfig
from align.console import say
from align.errors import AlignError, DataError, ServiceError
from align.formats.policy import OPTED_OUT, Entry, OptedOut, read_opted_out, write_opted_out
from align.lineage.data_versions import DataVersions
from align.lineage.purge import Doomed, Look, pages_with_pictures, stage_of, survey
from align.lineage.take_down import Affected, affected, index_shows, purge_raw, seen, shards_show, tars_of
from align.lineage.trained import trainings
from align.lineage.wishes import read_wishes
from align.services.store import Objects, fetcher, keep_tar
from align.services.tracking import Tracker, is_there


@dataclass(frozen=True)
class Place:
    """One place that was purged. `left` says why something is still there; empty: nothing is."""

    where: str
    removed: str
    left: str = ""


@dataclass(frozen=True)
class Purge:
    """What is to be purged: found before anything is touched.

    Attributes:
        opted_out: the whole policy.
        here: the opted-out pairs of data/raw.
        image_ids: of all opted-out pictures, in whatever version of the data.
        doomed: earlier versions that show one, and their objects.
    """

    opted_out: OptedOut
    here: Affected
    image_ids: frozenset[str]
    doomed: Doomed


def record(policy: Path, wishes: Iterable[Entry]) -> tuple[OptedOut, int]:
    """Adds the entries to the policy; returns it, and how many were new. Recording twice changes nothing."""
    before = read_opted_out(policy)
    after = OptedOut([*before.entries, *wishes])
    num_new = len(after.entries) - len(before.entries)
    if num_new:
        write_opted_out(policy, after)
    return after, num_new


def plan_purge(versions: DataVersions, opted_out: OptedOut, paths: PathsConfig, store: StoreConfig) -> Purge:
    """Looks into the checkout and into every version of raw data, shards and index that is known."""
    here = affected(paths.raw, opted_out)
    image_ids = here.image_ids | {entry.value for entry in opted_out.entries if entry.kind == "image_id"}

    def raw_shows(folder: Path) -> bool:
        nonlocal image_ids
        found = affected(folder, opted_out)
        image_ids |= found.image_ids
        return bool(found.gone)

    def shards_do(folder: Path) -> bool:
        return shards_show(folder, image_ids, fetcher(store))

    looks = {
        paths.raw.as_posix(): Look(("*.parquet",), raw_shows),
        paths.shards.as_posix(): Look(("manifest.json", "*.tar"), shards_do, ask_remotes=False),
        paths.index.as_posix(): Look(("items.parquet",), lambda folder: index_shows(folder, image_ids)),
    }
    doomed = survey(versions, looks, paths.reports.as_posix())
    return Purge(opted_out, here, image_ids, doomed)


def purge(versions: DataVersions, plan: Purge, paths: PathsConfig, store: StoreConfig) -> Iterator[Place]:
    """Removes the pictures, a place at a time. A second run goes on with what a first one had to leave."""
    stage = stage_of(versions.runs(), paths.raw.as_posix())
    old_tars = _tars(versions, plan.doomed.versions) | _tars_here(paths) if store.objects is not None else set()
    yield from _purge_checkout(plan, paths, store)
    now: dict[str, str] = {}
    if plan.here.gone and stage is not None:
        yield _commit(versions, stage, paths)
        now = versions.files_in_checkout(paths.raw.as_posix())
    if store.objects is not None:
        kept = _tars_here(paths) | _tars(versions, plan.doomed.clean_versions)
        yield _purge_store(Objects(store), sorted(old_tars - kept))
    for one in versions.remove(plan.doomed.to_remove(now)):
        left = f"{len(one.left):,} objects: {next(iter(one.left.values()))}" if one.left else ""
        yield Place(one.place, f"{len(one.removed):,} objects", left)
    for name, why in versions.unreachable.items():
        yield Place(f"DVC remote '{name}'", "nothing", why)
    for other in versions.other_checkouts():
        if affected(other / paths.raw, plan.opted_out).gone or _shards_show(other / paths.shards, plan, store):
            yield Place(f"{other}", "nothing", "another checkout with data of its own; purge there, or remove it")


def _purge_checkout(plan: Purge, paths: PathsConfig, store: StoreConfig) -> Iterator[Place]:
    if plan.here.gone:
        tars = tars_of(paths.raw)
        tar_of = (lambda name: Objects(store).get(*tars[f"{name}.tar"])) if store.objects is not None else None
        keep = partial(keep_tar, config=store)
        names = purge_raw(paths.raw, plan.opted_out, plan.here, tar_of=tar_of, keep_tar=keep)
        yield Place(f"{paths.raw}", f"{len(plan.here.gone):,} pictures, out of {len(names):,} rewritten shards")
    shown = bool(plan.here.gone)
    if _shards_show(paths.shards, plan, store):
        yield _remove_folder(paths.shards)
        shown = True
    if (paths.index / "items.parquet").is_file() and index_shows(paths.index, plan.image_ids):
        yield _remove_folder(paths.index)
        shown = True
    if shown and (pages := pages_with_pictures(paths.reports)):
        for page in pages:
            page.unlink()
        yield Place(f"{paths.reports}", f"{len(pages):,} pages and pictures; `dvc repro` makes them anew")
    for folder in (paths.raw, paths.shards, paths.index):
        for leftover in (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "old")):
            if leftover.is_dir():
                yield _remove_leftover(leftover, folder.with_name(f".{folder.name}.lock"))


def _remove_leftover(leftover: Path, lock: Path) -> Place:
    with lock.open("a") as file:  # as `align.work` locks it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Place(f"{leftover}", "nothing", "a run is working there; wait for it, or end it")
        shutil.rmtree(leftover)
    return Place(f"{leftover}", "what a killed run had left")


def _shards_show(shards: Path, plan: Purge, store: StoreConfig) -> bool:
    return (shards / "manifest.json").is_file() and shards_show(shards, plan.image_ids, fetcher(store))


def _remove_folder(folder: Path) -> Place:
    shutil.rmtree(folder)
    return Place(f"{folder}", "the whole folder; `dvc repro` makes it anew")


def _commit(versions: DataVersions, stage: str, paths: PathsConfig) -> Place:
    where = f"dvc.lock, stage {stage}"
    try:
        done = versions.commit(stage, (paths.policy / OPTED_OUT).as_posix())
    except AlignError as error:
        return Place(where, "nothing", str(error))
    return Place(where, "the old data/raw" if done else f"nothing: {stage} is stale and runs again at `dvc repro`")


def _purge_store(objects: Objects, tars: list[str]) -> Place:
    where, removed = f"store of tars {objects.config.objects}", 0
    try:
        for sha256 in tars:
            objects.delete(sha256)
            removed += 1
    except AlignError as error:
        return Place(where, f"{removed:,} tars", f"{len(tars) - removed:,} tars: {error}")
    return Place(where, f"{removed:,} tars")


def _tars_here(paths: PathsConfig) -> set[str]:
    return {sha256 for folder in (paths.raw, paths.shards) for sha256, _ in tars_of(folder).values()}


def _tars(versions: DataVersions, chosen: Iterable[tuple[str, str]]) -> set[str]:
    folders = (versions.lay_out(md5, "manifest.json") for _, md5 in chosen)
    return {sha256 for folder in folders if folder is not None for sha256, _ in tars_of(folder).values()}


def _say_who_saw(
    params: Params, paths: PathsConfig, store: StoreConfig, versions: DataVersions, ids: frozenset[str]
) -> None:
    """Lists the registered model versions, and what each saw of the pictures."""
    if not is_there():
        say("forget: models: no MLflow here (neither MLFLOW_TRACKING_URI nor mlflow.db)")
        return
    model = params.section(RegisterConfig).model_name
    try:
        found = trainings(
            Tracker(), model, shards=paths.shards, out=paths.shards.as_posix(), versions=versions,
            count=lambda folder: seen(folder, ids, tar_of=fetcher(store)),
        )  # fmt: skip
    except ServiceError as error:
        say(f"forget: models: {error}")
        return
    for one in found:
        aliases = f" ({', '.join(one.aliases)})" if one.aliases else ""
        what = "unknown" if one.seen is None else f"trained on {one.seen.get('train', 0):,} of the pairs"
        held_out = sum((one.seen or {}).values()) - (one.seen or {}).get("train", 0)
        also = f", measured on {held_out:,}" if held_out else ""
        print(f"{one.version.name} version {one.version.number}{aliases}: {what}{also}; {one.why}")
    if not found:
        say(f"forget: models: '{model}' has no version")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    for kind, what in (
        ("keys", "pairs' keys, each recorded as the address and sha256 of its picture"),
        ("urls", "addresses of pictures, or of pages that show them"),
        ("hosts", "hosts of pictures or pages; all hosts below one are meant too"),
    ):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"{what}; one a line")
    parser.add_argument("--reason", default="", help="kept with each entry")
    parser.add_argument("--purge", action="store_true", help="remove the bytes of all that is recorded, everywhere")
    parser.add_argument("--yes", action="store_true", help="with --purge: do it; without it only say what would go")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align forget`.

    Raises:
        DataError: nothing is asked for, a line is bad, --yes is missing, or a place could not be purged.
    """
    paths, store = params.section(PathsConfig), params.section(StoreConfig)
    files = {kind: path for kind in ("keys", "urls", "hosts") if (path := getattr(args, kind)) is not None}
    if not files and not args.purge:
        raise DataError("nothing to forget: give --keys, --urls or --hosts FILE, or --purge for what is recorded")
    wishes = read_wishes(files, paths.raw, args.reason)
    opted_out, num_new = record(paths.policy, wishes)
    asked = OptedOut(wishes) if files else opted_out
    print(f"{num_new} new entries in {paths.policy / OPTED_OUT}, {len(asked.entries) - num_new} were there already"
          if files else f"{len(opted_out.entries)} entries in {paths.policy / OPTED_OUT}")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="align-") as scratch:
        versions = DataVersions(Path.cwd(), Path(scratch))
        found = affected(paths.raw, asked)
        ids = found.image_ids | {entry.value for entry in asked.entries if entry.kind == "image_id"}
        print(
            f"{paths.raw}: {found.num_pairs:,} pairs, {len(found.image_ids):,} pictures; {found.num_held:,} with bytes"
        )
        _say_who_saw(params, paths, store, versions, ids)
        if args.purge:
            _purge_and_say(versions, opted_out, paths, store, yes=args.yes)
    say("forget: next: commit the policy; `dvc repro` drops the pairs and makes anew what comes after, models too")
    if not args.purge and found.num_held:
        say("forget: their bytes are still here and in DVC's cache; `align forget --purge` removes them")


def _purge_and_say(
    versions: DataVersions, opted_out: OptedOut, paths: PathsConfig, store: StoreConfig, *, yes: bool
) -> None:
    plan = plan_purge(versions, opted_out, paths, store)
    if not yes:
        print(f"to go: {len(plan.here.gone):,} pictures of {paths.raw}")
        for (path, md5), why in sorted(plan.doomed.versions.items()):
            print(f"to go: {path} {md5[:8]} ({why})")
        num_objects, remotes = len(plan.doomed.to_remove()), ", ".join(versions.remotes()) or "none"
        print(f"to go: at most {num_objects:,} objects of DVC's cache and of each remote ({remotes})")
        raise DataError("nothing is purged yet: this ends the versions named above for good; add --yes to do it")
    places = []
    for place in purge(versions, plan, paths, store):
        places.append(place)
        print(f"{place.where}: {place.removed}" + (f"; LEFT: {place.left}" if place.left else ""))
    if plan.here.shared:
        say(f"forget: {len(plan.here.shared):,} pictures stay: pairs that nobody asked to forget show them too")
    say(
        "forget: not looked into: the archive that ingest reads (it passes them over now), and reports copied to MLflow"
    )
    left = [place.where for place in places if place.left]
    if left:
        raise DataError(
            f"not everything is gone: {', '.join(left)}; mend that and run `align forget --purge --yes` again"
        )
    print("nothing is left in the places named" if places else "nothing had to go")
