"""Finds out what a purge has to remove, before anything is touched: pictures, and the texts of their pairs.

Versions share objects. So a purge removes the objects of a version with an opted-out picture that no other version
needs: most of a large dataset is the same before and after it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from align.config.paths import PathsConfig
from align.errors import DataError
from align.formats.filtered import PAIR_FILES
from align.formats.indexed_images import ITEMS
from align.formats.policy import OptedOut
from align.formats.raw import STATED_SHA256
from align.interfaces.store import FetchTar
from align.lineage.versions.data_versions import DataVersions, matching
from align.lineage.versions.raw_pairs import is_opted_out, iter_tables
from align.lineage.versions.shard_samples import SHARD_FILES, filtered_shows, index_shows, shards_show
from align.lineage.versions.stage_runs import CHECKOUT, StageRun
from align.pairs.text import mask_personal_data, normalise

#: Files of a report that show pictures: pages with small copies in them, and pictures.
_PAGE, _PICTURES = ".html", {".jpg", ".jpeg", ".png", ".webp"}
#: The file of a report that can quote texts.
_REPORT = "report.json"
_SIGNS = (b"data:image/jpeg", b"data:image/webp", b"<figure")


@dataclass(frozen=True)
class OptedOutPairs:
    """The opted-out pairs of a folder.

    Attributes:
        num_pairs: number of these pairs.
        num_held: number of those whose picture is in the folder.
        image_ids: sha256s of their pictures, as far as known.
        gone: keys of the tar samples that no other pair shows: a purge removes them.
        shared: keys of the tar samples that another pair shows too: they stay.
        shards: names of the shards with such a pair.
        texts: (sha256 of the picture or None, normalised text) of the pairs that still have a text.
    """

    num_pairs: int
    num_held: int
    image_ids: frozenset[str]
    gone: frozenset[str]
    shared: frozenset[str]
    shards: frozenset[str]
    texts: frozenset[tuple[str | None, str]]

    @property
    def to_purge(self) -> bool:
        """Whether the folder has a picture or a text that a purge removes."""
        return bool(self.gone or self.texts)


@dataclass(frozen=True)
class OutCheck:
    """How to find out whether a version of an out shows an opted-out picture.

    Attributes:
        patterns: of the files that the check needs.
        shows: whether a folder with these files shows one.
        ask_remotes: whether to fetch files that are not on this machine; if not, a version with such files counts as
            showing one.
    """

    patterns: tuple[str, ...]
    shows: Callable[[Path], bool]
    ask_remotes: bool = True


@dataclass
class DoomedVersions:
    """The versions that a purge ends, and their objects.

    Attributes:
        versions: (path of the out, md5) -> who recorded it, and why it has to go.
        objects: md5s of their files, and of report files that may show a small copy of a picture or quote a text.
        clean: md5s of all other versions' files; these stay.
        clean_versions: (path, md5) of the versions that were checked and show none.
    """

    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    clean: set[str] = field(default_factory=set)
    clean_versions: set[tuple[str, str]] = field(default_factory=set)

    def to_remove(self, also_clean: Mapping[str, str] | None = None) -> set[str]:
        """The objects that no clean version needs; `also_clean` (path -> md5) is a version made since."""
        return self.objects - self.clean - set((also_clean or {}).values())


@dataclass(frozen=True)
class PurgePlan:
    """What a purge removes.

    Attributes:
        opted_out: the whole policy.
        pairs: the opted-out pairs of data/raw in the checkout.
        image_ids: sha256s of all opted-out pictures, in any version of the data.
        texts: the texts of their pairs, as `OptedOutPairs.texts`, in any version of the data.
        doomed: versions that show one, and their objects.
    """

    opted_out: OptedOut
    pairs: OptedOutPairs
    image_ids: frozenset[str]
    texts: frozenset[tuple[str | None, str]]
    doomed: DoomedVersions


def opted_out_pairs(raw: Path, opted_out: OptedOut) -> OptedOutPairs:
    """Reads the tables of a folder in img2dataset's layout, and also the tars if img2dataset made it.

    Raises:
        DataError: a table is unreadable.
    """
    num_pairs = 0
    held: Counter[str] = Counter()
    image_ids, shards, texts = set(), set(), set()
    for name, rows in iter_tables(raw):
        for row in rows:
            if is_opted_out(opted_out, row):
                num_pairs += 1
                shards.add(name)
                image_ids |= {row["sha256"], row[STATED_SHA256]} - {None}
                if text := normalise(row["caption"] or ""):
                    texts.add((row["sha256"], text))
                if row["image_key"] is not None:
                    held[row["image_key"]] += 1
    shared = _shown_by_others(raw, opted_out, held.keys()) if held else set()
    return OptedOutPairs(
        num_pairs=num_pairs,
        num_held=held.total(),
        image_ids=frozenset(image_ids),
        gone=frozenset(held.keys() - shared),
        shared=frozenset(shared),
        shards=frozenset(shards),
        texts=frozenset(texts),
    )


def _shown_by_others(raw: Path, opted_out: OptedOut, image_keys: Set[str]) -> set[str]:
    return {
        row["image_key"]
        for _, rows in iter_tables(raw)
        for row in rows
        if row["image_key"] in image_keys and not is_opted_out(opted_out, row)
    }


def plan_purge(
    versions: DataVersions, opted_out: OptedOut, paths: PathsConfig, fetch: FetchTar | None = None
) -> PurgePlan:
    """Checks data/raw of the checkout, and every recorded version of raw and filtered data, shards and index."""
    pairs = opted_out_pairs(paths.raw, opted_out)
    image_ids = pairs.image_ids | {entry.value for entry in opted_out.entries if entry.kind == "image_id"}
    texts = pairs.texts

    def raw_shows(folder: Path) -> bool:
        nonlocal image_ids, texts  # an older version may show pictures at these addresses that the checkout never had
        older = opted_out_pairs(folder, opted_out)
        image_ids |= older.image_ids
        texts |= older.texts
        return older.to_purge

    checks = {  # in pipeline order: later checks need the picture hashes that the first collects
        paths.raw.as_posix(): OutCheck(("*.parquet",), raw_shows),
        paths.filtered.as_posix(): OutCheck(PAIR_FILES, lambda folder: filtered_shows(folder, texts)),
        paths.shards.as_posix(): OutCheck(
            SHARD_FILES, lambda folder: shards_show(folder, image_ids, fetch), ask_remotes=False
        ),
        paths.index.as_posix(): OutCheck((ITEMS,), lambda folder: index_shows(folder, image_ids, opted_out)),
    }
    _fetch(versions, checks)
    doomed = find_doomed(versions, checks)
    collect_objects(versions, doomed, paths.reports.as_posix(), texts)
    return PurgePlan(opted_out, pairs, image_ids, texts, doomed)


def _fetch(versions: DataVersions, checks: Mapping[str, OutCheck]) -> None:
    """Asks the remotes once for the lists that the cache lacks, and once for the files that the checks need."""
    runs = versions.runs()
    recorded = {(path, md5) for run in runs for path, md5 in (*run.deps.items(), *run.outs.items()) if path in checks}
    lists = {md5 for _, md5 in recorded} | {md5 for run in runs for md5 in run.outs.values()}
    versions.fetch(md5 for md5 in lists if md5.endswith(".dir"))
    versions.fetch(
        one
        for path, md5 in recorded
        if checks[path].ask_remotes
        for one in matching(versions.files(md5) or {}, checks[path].patterns).values()
    )


def find_doomed(versions: DataVersions, checks: Mapping[str, OutCheck]) -> DoomedVersions:
    """Checks every recorded version of the outs that can show a picture or a text; collects no objects yet.

    Args:
        versions: the history.
        checks: path of an out -> its check, in pipeline order.
    """
    runs = versions.runs()
    doomed = DoomedVersions()
    for path, check in checks.items():
        checked: set[str] = set()
        for run in runs:
            md5 = run.outs.get(path) or run.deps.get(path)
            if md5 and md5 not in checked:
                checked.add(md5)
                if why := _why_doomed(versions, md5, check):
                    doomed.versions[path, md5] = f"{run.where}; {why}"
                else:
                    doomed.clean_versions.add((path, md5))
    return doomed


def collect_objects(
    versions: DataVersions, doomed: DoomedVersions, reports: str, texts: frozenset[tuple[str | None, str]]
) -> None:
    """Fills `doomed.objects` and `doomed.clean`.

    Args:
        versions: the history.
        doomed: what `find_doomed` found.
        reports: the folder of all reports.
        texts: as `PurgePlan.texts`.
    """
    runs, quoted = versions.runs(), _as_quoted(texts)
    gone = {md5 for _, md5 in doomed.versions}
    for md5 in gone:
        doomed.objects |= {md5, *(versions.files(md5) or {}).values()}
    outs = {md5: versions.files(md5) or {} for run in runs for md5 in run.outs.values() if md5 not in gone}
    dirty = [
        outs[md5]
        for run in runs
        if not gone.isdisjoint(run.deps.values())  # not outs: ingest's report, whose stage makes data/raw, shows none
        for path, md5 in run.outs.items()
        if md5 not in gone and PurePosixPath(path).is_relative_to(reports)
    ]
    versions.fetch(md5 for files in dirty for path, md5 in files.items() if _has_words(PurePath(path)))
    pages = {  # with pictures and quotations
        md5
        for files in dirty
        for path, md5 in files.items()
        if _tells(PurePath(path), partial(versions.object, md5), quoted)
    }
    doomed.objects |= pages
    doomed.clean = {one for md5, files in outs.items() for one in (md5, *files.values())} - pages


def _why_doomed(versions: DataVersions, md5: str, check: OutCheck) -> str | None:
    if versions.files(md5) is None:
        return None  # no cache or remote that could be reached has its list: see `DataVersions.unreachable`
    folder = versions.lay_out(md5, *check.patterns, ask_remotes=check.ask_remotes)
    if folder is None:
        return (
            "incomplete, so it cannot be checked" if check.ask_remotes else "not on this machine, so it was not checked"
        )
    try:
        return "shows them" if check.shows(folder) else None
    except DataError as error:
        return f"unreadable: {error}"


def telling_reports(reports: Path, texts: frozenset[tuple[str | None, str]]) -> list[Path]:
    """The files in a folder of reports that show pictures or quote one of the texts; ingest's report does neither."""
    quoted = _as_quoted(texts)
    of_stages = (
        path
        for path in sorted(reports.glob("*/**/*"))
        if not path.is_relative_to(reports / "ingest")
        and (reports / path.relative_to(reports).parts[0] / "metrics.json").is_file()  # a stage's folder
    )
    return [path for path in of_stages if _tells(path, partial(Path, path), quoted)]


def _has_words(path: PurePath) -> bool:
    """Whether a file of a report must be read to know what it shows or quotes."""
    return path.suffix == _PAGE or path.name == _REPORT


def _tells(path: PurePath, find: Callable[[], Path | None], quoted: frozenset[str]) -> bool:
    if path.suffix in _PICTURES:
        return True
    if not _has_words(path):
        return False
    file = find()
    if file is None:
        return False
    if path.suffix == _PAGE:
        return any(sign in file.read_bytes() for sign in _SIGNS)
    return not quoted.isdisjoint(_strings(json.loads(file.read_bytes())))


def _as_quoted(texts: frozenset[tuple[str | None, str]]) -> frozenset[str]:
    """The texts as reports quote them."""
    return frozenset(form for _, text in texts for form in (text, mask_personal_data(text)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)


def stage_of(runs: list[StageRun], out: str) -> str | None:
    """The stage that makes an out, according to the checkout's dvc.lock."""
    return next((run.name for run in runs if run.where == CHECKOUT and out in run.outs), None)
