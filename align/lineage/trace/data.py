"""The half of a trace that is data: from source and pages to gate and shards, of one version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config.paths import PathsConfig
from align.display.visible import cut
from align.errors import DataError
from align.formats.raw import MANIFEST as RAW_MANIFEST
from align.formats.shards import MANIFEST, SPLITS, Manifest, read_manifest
from align.formats.verdict import NOT_GATED, SHARDS, TABLES, VERDICT
from align.lineage.trace.sections import Facts, Picture, Section, State, known
from align.lineage.versions.at_revision import FilesAt
from align.lineage.versions.raw_pairs import RawRow, find_pairs
from align.lineage.versions.shard_samples import SHARD_FILES, StoredSample, samples_of
from align.lineage.versions.who_saw import not_here

_REPORT = "report.json"
_WIDTH = 56  # of an address in a title
#: The number of pairs that are shown of a version of the data.
NUM_SAMPLES = 4


class Data:
    """One version of the data, as sections.

    Args:
        files: where it lies.
        paths: section `paths`.
    """

    def __init__(self, files: FilesAt, paths: PathsConfig) -> None:
        self.files, self.paths = files, paths

    def sections(self) -> Iterator[Section]:
        """All of them."""
        yield self.source()
        yield from self._pairs()
        yield self._funnel()
        yield self.gate()
        yield self.shards()

    def source(self) -> Section:
        """The source that data/raw was read from, by its manifest and the report of ingest."""
        manifest = self.files.json(self.paths.raw, RAW_MANIFEST) or {}
        report = self._report("ingest")
        made_with = manifest.get("made_with") or {}
        # a folder is read as one file, however many pictures it has
        kind = (made_with.get("ingest") or {}).get("source")
        facts = known(
            ("kind", kind), ("files", "" if kind == "folder" else _number(report, "num_files")),
            ("pages with pairs", _number(report, "num_pages")),
            ("pages", _number(report, "num_pages_in_archive")), ("data/raw", str(manifest.get("digest", ""))[:12]),
        )  # fmt: skip
        archive = made_with.get("archive")
        title = cut(str(archive), _WIDTH) if archive else "source not recorded"
        return Section("source", title, facts, missing=self._unless(report, "ingest"))

    def _pairs(self) -> Iterator[Section]:
        """How many pairs there are, and a few of them with their pages."""
        report, gone = self._report("ingest"), []
        try:
            for row, picture in self._rows_of(self._samples()):
                yield page_of(row)
                facts = known(("text", row["caption"]), ("page", row["page_url"]))
                pictures = (picture,) if picture else ()
                yield Section("pair", f"pair {row['key']}, one of them", facts, pictures=pictures)
        except DataError as error:
            gone.append(f"no pages are shown: {error}")
        if not any(self.files.folder(self.paths.raw, "*.parquet").glob("*.parquet")):
            gone.append(self.files.why_missing(self.paths.raw))
        facts = known(("pictures", _number(report, "num_images")), ("may be retried", _number(report, "num_retryable")))
        title = f"{_number(report, 'num_pairs') or 'unknown number of'} pairs in {self.paths.raw}"
        yield Section("pair", title, facts, missing=tuple(gone))

    def _funnel(self) -> Section:
        """What the filter kept and dropped."""
        report = self._report("filter")
        if report is None:
            return Section("decision", "decisions not here", missing=self._unless(report, "filter"))
        kept = f"{int(report.get('num_kept', 0)):,} of {int(report.get('num_pairs', 0)):,}"
        dropped = [
            (row["reason"], f"drops {row['num_first']:,} first, where {row['drops_where'] or 'not recorded'}")
            for row in report.get("funnel") or () if row["num_first"]
        ]  # fmt: skip
        sets = _number(report, "num_evaluation_sets")
        facts = known(("kept", kept), ("evaluation sets kept out", sets), *dropped)
        return Section("decision", f"{kept} pairs kept", facts)

    def gate(self) -> Section:
        """The gate before the shards: its verdict, who accepted what, and whether it is about these decisions."""
        verdict = self.files.json(self.paths.reports / TABLES, VERDICT)
        if verdict is None:
            return Section("gate", "verdict not here", missing=self._unless(None, TABLES))
        expectations, accepted = _expectations(self._report(TABLES) or {})
        made, problems = self._report("shard") or {}, []
        if "decisions" in made and made["decisions"] != verdict.get("data"):
            problems.append("it is about other decisions than those that the shards were made of; run `align validate`")
        passed = bool(verdict.get("passed")) and not problems
        state: State = "bad" if not passed else "warn" if accepted else "good"
        facts = known(
            ("verdict", "passed" if verdict.get("passed") else f"failed: {verdict.get('failure')}"),
            ("about", f"decisions {str(verdict.get('data'))[:12]}"), ("expectations", expectations),
            *(("accepted", line) for line in accepted), *(("problem", line) for line in problems),
        )  # fmt: skip
        title = "passed, with acceptances" if state == "warn" else "passed" if passed else "failed, or of other data"
        return Section("gate", title, facts, state)

    def shards(self, facts: Facts = (), title: str = "") -> Section:
        """The shards, or a part of them with facts and a title of its own; with the verdict of the second gate."""
        manifest = self.manifest
        digest = manifest.digest if manifest else ""
        counts = [(split, manifest.splits[split]) for split in SPLITS if split in manifest.splits] if manifest else []
        second = self.files.json(self.paths.reports / SHARDS, VERDICT)
        about = second is not None and second.get("data") == digest
        checked = "not recorded" if not second or not about else "passed" if second.get("passed") else "failed"
        _, accepted = _expectations(self._report(SHARDS) or {})
        every = known(
            *facts, ("data", digest), ("where", self.files.where),
            *((split, f"{one.num_images:,} pictures, {one.num_pairs:,} pairs, {len(one.shards):,} tars")
              for split, one in counts if one.num_images),
            ("picture size", f"{manifest.image_px} px square" if manifest else ""),
            ("second gate", checked), *(("accepted", line) for line in accepted),
        )  # fmt: skip
        state: State = "bad" if checked == "failed" else "warn" if accepted else ""
        return Section("shards", title or f"data {digest[:12]}", every, state, self._missing_tars())

    @property
    def manifest(self) -> Manifest | None:
        """Of the shards; None if it is not available or has another layout."""
        try:
            return read_manifest(self.files.folder(self.paths.shards, MANIFEST))
        except DataError:
            return None

    def _missing_tars(self) -> tuple[str, ...]:
        """One line where tars are not on this machine."""
        if self.manifest is None:
            return (self.files.why_missing(self.paths.shards),)
        folder = self.files.folder(self.paths.shards, *SHARD_FILES)
        absent = sum(not (folder / path).is_file() for path in self.manifest.tars)
        if not absent:
            return ()
        fetched = "store.objects fetches them when they are read, if they were put there; else "
        return (f"of {len(self.manifest.tars):,} tars, {absent:,} are absent; {fetched}"
                f"{self.files.why_missing(self.paths.shards)}",)  # fmt: skip

    def _samples(self) -> list[StoredSample]:
        """A few samples of the first tar of the training split that has any and is on this machine."""
        if self.manifest is None:
            return []
        folder = self.files.folder(self.paths.shards, *SHARD_FILES)
        for shard in self.manifest.splits["train"].shards:
            if shard.num_images and (folder / shard.path).is_file():
                chosen = sorted({number * shard.num_images // NUM_SAMPLES for number in range(NUM_SAMPLES)})
                return list(samples_of(folder, "train", shard, chosen))
        return []

    def _rows_of(self, samples: Sequence[StoredSample]) -> Iterator[tuple[RawRow, Picture | None]]:
        raw = self.files.folder(self.paths.raw, "*.parquet")
        rows = {row["key"]: row for row in find_pairs(raw, "key", {one.keys[0] for one in samples})} if samples else {}
        for sample in samples:
            if sample.keys[0] in rows:
                yield rows[sample.keys[0]], picture_of(sample, self.files.folder(self.paths.shards, *SHARD_FILES))

    def _report(self, stage: str) -> dict[str, Any] | None:
        return self.files.json(self.paths.reports / stage, _REPORT)

    def _unless(self, report: object, stage: str) -> tuple[str, ...]:
        return () if report else (self.files.why_missing(self.paths.reports / stage),)


def page_of(row: RawRow) -> Section:
    """The page in which a pair was found, or the row of a table, which names no page."""
    page, url = row["page_url"] or "", row["url"] or ""
    if page:
        return Section("page", cut(page.partition("://")[2] or page, _WIDTH), known(("page", page)))
    facts = known(("picture", url), ("page", "not recorded: the source is no web archive"))
    return Section("page", f"row of {cut(url.partition('://')[2] or url, 40)}", facts)


def unknown_data(digest: str) -> Section:
    """Data that is neither checked out nor recorded here."""
    return Section("shards", f"data {digest[:12]}", missing=(not_here(digest),))


def given_data(digest: str, indexes: Path) -> Section:
    """Tars that others made: nothing is known of what came before. One of `indexes` may say where they lie."""
    title, facts = f"data {digest[:12]}, {NOT_GATED}", [("data", digest), ("gate", "no rule and no gate has seen it")]
    gone = ["where its tars lie is not known here: their index is on another machine, or removed"]
    for manifest in (read_manifest(path.parent, given=True) for path in indexes.glob(f"*/{MANIFEST}")):
        if manifest.digest == digest:
            tars, gone = [str(task.shard.given) for task in manifest.tasks], []
            splits = manifest.splits.items()
            facts += [(name, f"{one.num_images:,} pictures, {one.num_pairs:,} pairs") for name, one in splits]
            facts += [("tars", f"{len({*tars}):,}, from {min(tars)} to {max(tars)}")]
    return Section("shards", title, tuple(facts), "warn", tuple(gone))


def picture_of(sample: StoredSample, shards: Path) -> Picture | None:
    """A sample's picture, as it was trained on; None if the tar is not here."""
    try:
        with (shards / sample.tar).open("rb") as file:
            file.seek(sample.offset_bytes)
            return Picture(file.read(sample.size_bytes), sample.texts[0])
    except OSError:
        return None


def _expectations(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    """How many passed, and what people accepted, as "NAME, by WHO: WHY"."""
    rows = report.get("expectations") or []
    accepted = [(row, row["accepted"]) for row in rows if row.get("accepted")]
    lines = [f"{row.get('name')}, by {one.get('by')}: {one.get('reason')}" for row, one in accepted]
    return f"{sum(bool(row.get('passed')) for row in rows)} of {len(rows)} passed" if rows else "", lines


def _number(report: Mapping[str, Any] | None, key: str) -> str:
    value = (report or {}).get(key)
    return f"{value:,}" if isinstance(value, int) else ""
