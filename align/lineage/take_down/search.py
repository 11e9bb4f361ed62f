"""Searches DVC's cache and its remotes for opted-out pictures and texts, object by object, whoever names them.

An object goes if its own bytes show one: a table, a tar, the tables of an index, a report that quotes. An index goes
whole, since its small pictures and vectors belong together. Pages and pictures of a report go if the report was made of
data that goes, as some dvc.lock in git says, or if no dvc.lock names it. Everything else stays: other tars of the same
version, manifests, numbers, models. So a version that loses something can still say what it was.

The texts and sha256s that are looked for come from the tables of data/raw, of the checkout and in each place. So tables
are removed last: a purge that was killed, or that could not reach a remote, finds them there again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
from ruamel.yaml.error import YAMLError

from align.config.params import parse_yaml
from align.config.paths import PathsConfig
from align.display.console import track
from align.formats.indexed_images import ITEMS
from align.formats.shards import MANIFEST
from align.lineage.take_down.look_into import (
    DECISIONS,
    INDEX,
    PAGE,
    REPORT,
    TABLE,
    TAR,
    Wanted,
    look_into,
    pairs_in,
)
from align.lineage.take_down.opted_out_pairs import OptedOutPairs
from align.services.dvc.stores import FOLDER, ObjectStore
from align.services.git import LOCK_FILE, git_if_any

#: What was made of what goes before it: a killed purge finds it again by the tables.
_ORDER = (PAGE, REPORT, INDEX, DECISIONS, TAR, TABLE)
#: md5 of a list -> path -> md5 of the files of a folder.
Lists = Mapping[str, Mapping[str, str]]


@dataclass
class Found:
    """What goes.

    Attributes:
        wanted: what was looked for.
        here: name of a store -> md5 of an object that goes -> what it is.
        clean_reports: paths of the checkout's reports whose pages stay: they were made of data that stays.
        manifests: the bytes of all manifests, which name tars that are kept in `store.objects`.
        searched: every object that was looked into and stays.
    """

    wanted: Wanted
    here: dict[str, dict[str, str]] = field(default_factory=dict)
    clean_reports: set[str] = field(default_factory=set)
    manifests: list[bytes] = field(default_factory=list)
    searched: set[str] = field(default_factory=set)

    def ordered(self, store: str) -> list[str]:
        """The objects of a store that go, tables last."""
        found = self.here.get(store, {})
        return sorted(found, key=lambda md5: (_ORDER.index(found[md5]) if found[md5] in _ORDER else len(_ORDER), md5))


def lists_of(stores: Iterable[ObjectStore]) -> Lists:
    """The lists of the files of folders, by their md5s; one that is damaged names nothing. Raises ServiceError."""
    found: dict[str, Mapping[str, str]] = {}
    for store in stores:
        for md5 in store.all() - found.keys():
            if md5.endswith(FOLDER):
                found[md5] = store.files_of(md5)
    return found


def what_is_wanted(pairs: OptedOutPairs, wanted: Wanted, stores: Iterable[ObjectStore], lists: Lists) -> Wanted:
    """Adds the sha256s and texts that the tables of all stores know, older ones included.

    Args:
        pairs: of the checkout.
        wanted: the policy.
        stores: the cache first: what it has is not fetched from a remote.
        lists: as `lists_of` reads them.

    Raises:
        ServiceError: a store does not answer any more.
    """
    image_ids, texts, seen = set(pairs.image_ids), set(pairs.texts), set[str]()
    names = _names(lists)
    for store in stores:
        objects = [md5 for md5 in sorted(store.all() - seen) if not md5.endswith(FOLDER)]
        for md5 in objects:
            if any(name.endswith(".parquet") for name in names.get(md5, {".parquet"})):
                with store.local(md5) as path:
                    for image_id, text in _pairs_if_table(path, wanted):
                        image_ids |= {image_id} if image_id else set()
                        texts |= {(image_id, text)} if text else set()
        seen |= set(objects)
    image_ids -= pairs.shown - wanted.opted_out.image_ids
    return Wanted(wanted.opted_out, frozenset(image_ids | wanted.opted_out.image_ids), frozenset(texts))


def search(
    root: Path, paths: PathsConfig, wanted: Wanted, stores: Iterable[ObjectStore], lists: Lists, *, pending: bool,
    again: bool,
) -> Found:  # fmt: skip
    """Looks into every object of the stores, each once.

    Args:
        root: the checkout.
        paths: section `paths`.
        wanted: as `what_is_wanted` says.
        stores: the cache first.
        lists: as `lists_of` reads them.
        pending: whether something else is known to go, such as pictures of the checkout's data/raw.
        again: whether an earlier purge has removed a part: then folders that lack a file are among what goes.

    Raises:
        ServiceError: a store does not answer any more.
    """
    known: dict[str, str] = {}
    names = _names(lists)
    held: dict[str, set[str]] = {}
    result = Found(wanted)
    for store in stores:
        held[store.name] = {md5 for md5 in store.all() if not md5.endswith(FOLDER)}
        new = sorted(held[store.name] - known.keys())
        for md5 in track(new, what=f"opt_out: objects of {store.name}", total=len(new)):
            with store.local(md5) as path:
                called = {Path(one).name for one in names.get(md5, {"report.json"})}
                what = look_into(path, wanted)
                known[md5] = what if what != REPORT or "report.json" in called else ""
                if MANIFEST in called:
                    result.manifests.append(path.read_bytes())
    bad = {md5 for md5, what in known.items() if what and what != PAGE}
    for files in lists.values():
        if files.get(ITEMS) in bad:
            bad |= set(files.values())
            known |= dict.fromkeys(files.values(), INDEX)
    gone = {md5 for files in lists.values() for md5 in files.values()} - known.keys() if again else set()
    ended = bad | {one for one, files in lists.items() if not (bad | gone).isdisjoint(files.values())}
    stages = list(_stages(root))
    of_raw = {outs[path] for _, outs in stages for path in outs if path == (paths.reports / "ingest").as_posix()}
    dirty = {md5 for deps, outs in stages if not ended.isdisjoint(deps) for md5 in outs.values()}
    clean = {md5 for _, outs in stages for md5 in outs.values()} - dirty | of_raw
    kept = {md5 for one, files in lists.items() if one in clean for md5 in files.values()}
    pages = {md5 for md5, what in known.items() if what == PAGE} - kept
    goes = bad | (pages if bad or pending else set())
    goes -= {md5 for one in of_raw for md5 in lists.get(one, {}).values()}
    result.here = {name: {md5: known[md5] for md5 in goes & objects} for name, objects in held.items()}
    result.searched = known.keys() - goes
    result.clean_reports = {path for _, outs in _stages_here(root) for path, md5 in outs.items() if md5 in clean}
    return result


def still_there(found: Found, store: ObjectStore) -> list[str]:
    """Proves that a store holds none of it: the objects that were to go and are there, and new ones that show it.

    Raises:
        ServiceError: it does not answer any more.
    """
    left = []
    for md5 in sorted(store.all() - found.searched):
        if not md5.endswith(FOLDER):
            with store.local(md5) as path:
                if md5 in found.here.get(store.name, {}) or look_into(path, found.wanted) not in ("", PAGE, REPORT):
                    left.append(md5)
    return left


def _pairs_if_table(path: Path, wanted: Wanted) -> Iterator[tuple[str | None, str]]:
    try:
        yield from pairs_in(path, wanted.opted_out)
    except (pa.ArrowException, OSError):  # no table, or a damaged one, which goes
        return


def _names(lists: Lists) -> dict[str, set[str]]:
    """What folders call an object."""
    names: dict[str, set[str]] = {}
    for files in lists.values():
        for path, md5 in files.items():
            names.setdefault(md5, set()).add(path)
    return names


_Stage = tuple[set[str], dict[str, str]]


def _stages(root: Path) -> Iterator[_Stage]:
    """(md5s of the deps, path -> md5 of the outs) of each stage of each dvc.lock: the checkout's and git's."""
    yield from _stages_here(root)
    commits = git_if_any(root, "log", "--all", "--full-history", "--format=%H", "--", LOCK_FILE) or ""
    texts = {git_if_any(root, "show", f"{commit}:./{LOCK_FILE}") for commit in commits.splitlines()}
    for text in texts - {None}:
        yield from _parsed(text or "")


def _stages_here(root: Path) -> Iterator[_Stage]:
    lock = root / LOCK_FILE
    yield from _parsed(lock.read_text("utf-8")) if lock.is_file() else ()


def _parsed(text: str) -> Iterator[_Stage]:
    try:
        stages = (parse_yaml(text) or {}).get("stages") or {}
    except (YAMLError, AttributeError):
        return
    for stage in stages.values():
        named = (stage.get(kind, ()) for kind in ("deps", "outs"))
        deps, outs = ({one["path"]: one["md5"] for one in some if "md5" in one} for some in named)
        yield set(deps.values()), outs
