"""Removes opted-out pictures and texts from the checkout, the store of tars, DVC's cache and its remotes.

    plan    searches all of them and changes nothing
    purge   removes what the plan names; then every object that is left has been looked into

No ref ends and nothing is collected (`dvc gc`): a whole run would lose its model for one picture, and a remote what
other clones have put there.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from align.config.infrastructure import StoreConfig
from align.config.paths import PathsConfig
from align.durable.files import leftovers, write_text
from align.durable.locks import tried
from align.errors import AlignError, FormatError, ServiceError
from align.formats.features import files_of
from align.formats.policy import OPTED_OUT, OptedOut
from align.formats.shards import MANIFEST
from align.formats.verdict import SHARDS
from align.lineage.take_down.look_into import PAGE, REPORT, Wanted, look_into
from align.lineage.take_down.opted_out_pairs import OptedOutPairs, opted_out_pairs
from align.lineage.take_down.purge_raw import purge_raw, stored_tars
from align.lineage.take_down.search import Found, lists_of, search, still_there, what_is_wanted
from align.services.dvc.commands import dvc, write_code
from align.services.dvc.outs import stage_of
from align.services.dvc.stages import read_status
from align.services.dvc.stores import ObjectStore
from align.services.git import LOCK_FILE, git_if_any
from align.services.s3.store import Objects, keep_tar

#: Exists until everything is gone: data/raw may no longer tell that a report shows something.
_BEGUN = Path(".align/purging")


@dataclass(frozen=True)
class Purged:
    """What was removed from one place, such as a folder or a remote.

    Attributes:
        where: the place.
        removed: what was removed, in words.
        left: why something is still there; empty if nothing is.
    """

    where: str
    removed: str
    left: str = ""


@dataclass(frozen=True)
class Plan:
    """What a purge removes.

    Attributes:
        pairs: the opted-out pairs of data/raw in the checkout.
        found: the objects of DVC that go.
        folders: of the checkout, which go whole.
        pages: of reports of the checkout.
        tars: sha256s of the tars in `store.objects` that go.
        again: whether an earlier purge was cut off, or could not remove everything.
    """

    pairs: OptedOutPairs
    found: Found
    folders: tuple[Path, ...]
    pages: tuple[Path, ...]
    tars: tuple[str, ...]
    again: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove, and no earlier purge to complete."""
        return not (self.raw or any(self.found.here.values()) or self.folders or self.tars or self.again)

    @property
    def raw(self) -> bool:
        """Whether data/raw is written anew; after a purge that was cut off, so that it is whole."""
        return self.pairs.to_purge or (self.again and self.pairs.num_pairs > 0)


def plan_purge(opted_out: OptedOut, paths: PathsConfig, store: StoreConfig, stores: Sequence[ObjectStore] = ()) -> Plan:
    """Searches the checkout in the working directory, the stores of DVC, and the store of tars.

    Raises:
        DataError: a table of data/raw is unreadable.
        ServiceError: a store does not answer.
    """
    pairs = opted_out_pairs(paths.raw, opted_out)
    lists = lists_of(stores)
    wanted = what_is_wanted(pairs, Wanted(opted_out), stores, lists)
    again = _BEGUN.is_file()
    pending = pairs.to_purge or again
    found = search(Path.cwd(), paths, wanted, stores, lists, pending=pending, again=again)
    tars = _tars(found, paths, store) if store.objects is not None else {}
    folders = tuple(
        folder for folder in (paths.filtered, paths.shards, paths.index)
        if any(look_into(path, wanted) not in ("", PAGE, REPORT) for path in _files(folder))
        or any(sha256 in tars for sha256, _ in (stored_tars(folder).values() if folder == paths.shards else ()))
    )  # fmt: skip
    shown = pending or bool(folders) or any(found.here.values())
    pages = tuple(_telling(paths, found)) if shown else ()
    return Plan(pairs, found, folders, pages, tuple(tars), again)


def purge(
    plan: Plan, paths: PathsConfig, store: StoreConfig, stores: Sequence[ObjectStore], unreachable: Mapping[str, str]
) -> Iterator[Purged]:
    """Removes what the plan names, place by place. A second run continues where the first one had to stop.

    Args:
        plan: what `plan_purge` found.
        paths: section `paths`.
        store: section `store`.
        stores: of DVC.
        unreachable: name -> why it does not answer, of the others.
    """
    if not plan.is_empty:
        write_text(_BEGUN, "")
    left = bool(unreachable)
    for result in _purge(plan, paths, store, stores):
        left |= bool(result.left)
        yield result
    yield from (Purged(name, "nothing", why) for name, why in unreachable.items())
    if not left:
        _BEGUN.unlink(missing_ok=True)


def _purge(plan: Plan, paths: PathsConfig, store: StoreConfig, stores: Sequence[ObjectStore]) -> Iterator[Purged]:
    yield from _checkout(plan, paths, store)
    if measured := files_of(store.features, plan.found.wanted.image_ids):
        for file in measured:
            file.unlink(missing_ok=True)
        what = f"{len(measured):,} files of measured values; `align filter` measures them again, without the pictures"
        yield Purged(f"{store.features}", what)
    stage = stage_of(paths.raw) if Path(LOCK_FILE).is_file() else None
    if stage is not None and (plan.raw or plan.again):
        yield _commit(stage, paths)
    if plan.tars:
        yield _purge_tars(Objects(store), plan.tars)
    for one in stores:
        if plan.found.here.get(one.name) or plan.raw:
            yield _purge_store(one, plan.found)
    yield from _leftovers(paths)
    yield from _others(plan, paths)


def _checkout(plan: Plan, paths: PathsConfig, store: StoreConfig) -> Iterator[Purged]:
    """data/raw comes last: it tells what the rest shows."""
    for folder in plan.folders:
        shutil.rmtree(folder, ignore_errors=True)
        yield Purged(f"{folder}", "the whole folder; `dvc repro` makes it again")
    for page in plan.pages:
        page.unlink(missing_ok=True)
    if plan.pages:
        yield Purged(f"{paths.reports}", f"{len(plan.pages):,} pages and pictures; `dvc repro` makes them again")
    if plan.raw:
        tars = stored_tars(paths.raw)
        tar_of = (lambda name: Objects(store).get(*tars[f"{name}.tar"])) if store.objects is not None else None
        opted_out, keep = plan.found.wanted.opted_out, partial(keep_tar, config=store)
        names = purge_raw(paths.raw, opted_out, plan.pairs, tar_of=tar_of, keep_tar=keep)
        what = f"{len(plan.pairs.gone):,} pictures and the texts of {plan.pairs.num_pairs:,} pairs"
        yield Purged(f"{paths.raw}", f"{what}, out of {len(names):,} rewritten shards")


def _commit(stage: str, paths: PathsConfig) -> Purged:
    """Records the purged data/raw as what its stage made, unless that would hide another change than the policy's."""
    where = f"{LOCK_FILE}, stage {stage}"
    try:
        write_code(Path.cwd())
        found = read_status(Path.cwd())[stage]
        if not found.has_run or found.other or found.deps.keys() - {(paths.policy / OPTED_OUT).as_posix()}:
            return Purged(where, f"nothing: {stage} is stale and runs again at `dvc repro`")
        dvc(Path.cwd(), "commit", "--force", stage)
    except AlignError as error:
        return Purged(where, "nothing", str(error))
    return Purged(where, "the old data/raw")


def _purge_store(store: ObjectStore, found: Found) -> Purged:
    removed, left = Counter[str](), []
    for md5 in found.ordered(store.name):
        try:
            store.delete(md5)
            removed[found.here[store.name][md5]] += 1
        except FileNotFoundError:
            removed[found.here[store.name][md5]] += 1  # somebody else has removed it
        except ServiceError as error:
            left.append(str(error))
    try:
        store.deleted()
        remaining = still_there(found, store)
    except AlignError as error:
        return Purged(store.name, words(removed), str(error))
    why = f"{len(remaining):,} objects: {left[0] if left else 'they came back'}" if remaining else ""
    return Purged(store.name, f"{words(removed)}; no other object shows it" if not why else words(removed), why)


def words(kinds: Counter[str]) -> str:
    """Such as `1 x tar, 2 x table`."""
    named = (f"{number:,} x {kind}" for kind, number in sorted(kinds.items()))
    return ", ".join(named) or "nothing"


def _purge_tars(objects: Objects, tars: Sequence[str]) -> Purged:
    where, removed = f"store of tars {objects.config.objects}", 0
    try:
        for sha256 in tars:
            objects.delete(sha256)
            removed += 1
    except AlignError as error:
        return Purged(where, f"{removed:,} tars", f"{len(tars) - removed:,} tars: {error}")
    return Purged(where, f"{removed:,} tars")


def _tars(found: Found, paths: PathsConfig, store: StoreConfig) -> dict[str, int]:
    """The tars in `store.objects` that show it, of all manifests of the checkout and of DVC's stores."""
    objects, named = Objects(store), dict[str, int]()
    for folder in (paths.raw, paths.shards):
        named |= dict(stored_tars(folder).values())
    for data in found.manifests:
        with TemporaryDirectory(prefix="align-") as scratch:
            (Path(scratch) / MANIFEST).write_bytes(data)
            try:
                named |= dict(stored_tars(Path(scratch)).values())
            except FormatError:  # of something else
                continue
    return {
        sha256: size
        for sha256, size in sorted(named.items())
        if objects.exists(sha256) and look_into(objects.get(sha256, size), found.wanted)
    }


def _telling(paths: PathsConfig, found: Found) -> Iterator[Path]:
    """Pages and pictures of the checkout's reports, and reports that quote; ingest's report does neither."""
    for folder in sorted(path.parent for path in paths.reports.glob("*/metrics.json")):
        if folder.name == "ingest":
            continue
        for path in _files(folder):
            what = look_into(path, found.wanted)
            quotes = what == REPORT and path.name == "report.json"
            if quotes or (what == PAGE and folder.as_posix() not in found.clean_reports):
                yield path


def _leftovers(paths: PathsConfig) -> Iterator[Purged]:
    """What killed runs left beside the folders."""
    for folder in (paths.raw, paths.filtered, paths.shards, paths.index, paths.reports / SHARDS):
        work = folder.with_name(f".{folder.name}.part")
        for leftover in (work, folder.with_name(f".{folder.name}.old"), *leftovers(folder)):
            if leftover.is_dir():
                with tried(folder.with_name(f".{folder.name}.lock")) as ours:  # as `align.durable.work` locks it
                    if ours:
                        shutil.rmtree(leftover)
                        yield Purged(f"{leftover}", "what a killed run had left")
                    else:
                        yield Purged(f"{leftover}", "nothing", "a run is working there; wait for it, or end it")


def _others(plan: Plan, paths: PathsConfig) -> Iterator[Purged]:
    """The other git worktrees of the repository: each has data of its own and shares the cache."""
    lines = (git_if_any(Path.cwd(), "worktree", "list", "--porcelain") or "").splitlines()
    for other in (Path(line.removeprefix("worktree ")) for line in lines if line.startswith("worktree ")):
        if other.resolve() != Path.cwd().resolve():
            folders = (other / one for one in (paths.raw, paths.filtered, paths.shards, paths.index))
            files = (path for one in folders for path in _files(one))
            if any(look_into(path, plan.found.wanted) not in ("", PAGE, REPORT) for path in files):
                yield Purged(f"{other}", "nothing", "another checkout with data of its own; purge there, or remove it")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
