"""A trace forward from pairs: each one's page, decision and shard, and the models and the index that have it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.config.paths import PathsConfig
from align.display.visible import cut
from align.errors import AlignError
from align.formats.indexed_images import ITEMS
from align.interfaces.store import FetchTar
from align.lineage.trace.data import Data, page_of, picture_of, unknown_data
from align.lineage.trace.models import index_section, run_section, version_sections
from align.lineage.trace.pair_history import PairHistory, RuleResult, look_up, rule_values
from align.lineage.trace.sections import Section, Trace, known
from align.lineage.versions.at_revision import FilesAt, Revisions, digest_of
from align.lineage.versions.raw_pairs import RawRow
from align.lineage.versions.registered import Registered
from align.lineage.versions.shard_samples import StoredSample, counted, iter_stored_samples
from align.lineage.versions.who_saw import SeenBy, who_saw
from align.services.tracking.registry import CHAMPION

#: How many pairs of a page or an address are traced.
MAX_PAIRS = 20
_NO_PICTURE = "its picture was never downloaded, so no model can have seen it"
#: What is known of the versions, as a column of a pair.
_WORDS = {True: "TRAINED on it", False: "did not see it", None: "unknown whether it saw the pair"}


@dataclass(frozen=True)
class Surroundings:
    """What a trace reads.

    Attributes:
        root: the checkout.
        paths: section `paths`.
        rules: section `filter`.
        revisions: what git and DVC have recorded.
        registered: what MLflow knows of the model that is traced.
        fetch: gets tars from the object store.
        given: the folder of indexes of tars that others made.
    """

    root: Path
    paths: PathsConfig
    rules: FilterConfig
    revisions: Revisions
    registered: Registered
    fetch: FetchTar | None
    given: Path


def trace_pairs(trace: Trace, rows: list[RawRow], around: Surroundings) -> None:
    """Adds the chains of these pairs."""
    paths = around.paths
    if len(rows) > MAX_PAIRS:
        trace.notes.append(f"{len(rows):,} pairs match; the first {MAX_PAIRS} are traced")
        rows = rows[:MAX_PAIRS]
    here = Data(FilesAt(), paths)
    trace.add(here.source())
    image_ids = frozenset(row["sha256"] for row in rows if row["sha256"])
    samples = _samples(trace, around, image_ids) if digest_of(paths.shards) else []
    stored = {} if samples is None else {paths.shards: samples}  # each data is read once
    for row in rows:
        history = look_up(
            row, around.rules, filtered=paths.filtered, report=paths.reports / "filter", policy=paths.policy
        )
        sample = _sample_of(history, samples or [])
        seen = [] if not row["sha256"] else _who_saw(around, stored, frozenset({row["sha256"]}), history, image_ids)
        trace.add(page_of(row), _pair(history, sample, paths, seen), _decision(history))
        if sample is not None:
            trace.add(here.gate(), here.shards(
                known(("split", sample.split), ("sample", sample.key), ("texts", len(sample.texts)),
                      ("picture at", f"byte {sample.offset_bytes:,}, {sample.size_bytes:,} bytes")), sample.tar,
            ))  # fmt: skip
    if not image_ids:
        trace.answers.append(_NO_PICTURE)
        return
    every = seen if len(rows) == 1 else _who_saw(around, stored, image_ids, None, image_ids)
    for one in every:
        trace.add(*_seen_by(one, around))
    if not around.registered.problem:
        _answer(trace, every, around.registered, len(rows))
    _index(trace, image_ids, around)


def _who_saw(
    around: Surroundings,
    stored: dict[Path, list[StoredSample]],
    pictures: frozenset[str],
    history: PairHistory | None,
    image_ids: frozenset[str],
) -> list[SeenBy]:
    """What versions and runs saw of some pictures, with the text of one pair if its history is given.

    `stored` keeps the samples of all traced pictures, by folder.
    """
    text = history["decision"]["text"] if history and history["decision"] else None

    def count(folder: Path) -> Mapping[str, int]:
        if folder not in stored:
            stored[folder] = list(iter_stored_samples(folder, around.fetch, image_ids))
        return counted((one for one in stored[folder] if one.image_id in pictures), text)

    return who_saw(around.registered, around.paths.shards, around.revisions, count)


def _samples(trace: Trace, around: Surroundings, image_ids: frozenset[str]) -> list[StoredSample] | None:
    """The samples of the pictures in the checkout's shards; None if these cannot be read."""
    try:
        return list(iter_stored_samples(around.paths.shards, around.fetch, image_ids))
    except AlignError as error:
        trace.notes.append(str(error))
        return None


def _sample_of(history: PairHistory, samples: list[StoredSample]) -> StoredSample | None:
    row, decision = history["pair"], history["decision"]
    found = next((one for one in samples if one.image_id == row["sha256"] and row["key"] in one.keys), None)
    return found if decision and decision["keep"] else None


def _pair(history: PairHistory, sample: StoredSample | None, paths: PathsConfig, seen: list[SeenBy]) -> Section:
    """All that is known of a pair but its decision."""
    row, decision, facts = history["pair"], history["decision"], history["facts"]
    picture = picture_of(sample, paths.shards) if sample else None
    status = f"{row['status']}{': ' + row['error_message'] if row['error_message'] else ''}"
    size = f"{row['original_width'] or row['width']} x {row['original_height'] or row['height']} px"
    cosine = facts.get("twin_cosine")
    twin = f"test image {facts['twin']}, " if facts.get("twin") else ""
    how = "equal bytes or hashes" if cosine is None else f"cosine {cosine:.4f}"
    every = known(
        ("text", row["caption"]), ("text from", row["text_source"]),
        ("normalised", decision["text"] if decision and decision["text"] != row["caption"] else ""),
        ("picture", row["url"]), ("page", row["page_url"] or "not recorded"),
        ("download", f"{status}, a retry may succeed" if row["retryable"] else status),
        ("size", size if row["width"] else ""), ("sha256", row["sha256"]),
        ("stored with", f"pair {row['image_key']}" if row["image_key"] not in (None, row["key"]) else ""),
        ("table", f"{paths.raw}/{row['raw_shard']}.parquet"),
        ("twin", twin and twin + how),
        ("take-down", "opted out by {kind} {value}".format(**history["opted_out"]) if history["opted_out"] else ""),
        ("models", _NO_PICTURE if not row["sha256"] else ""),
        *((one.title, f"{_verdict(one)}; {one.why}") for one in seen),
    )  # fmt: skip
    text = cut(row["caption"] or "", 60)
    return Section(
        "pair", f"pair {row['key']}" + (f": {text}" if text else ""), every,
        pictures=(picture,) if picture else (), asked=True,
    )  # fmt: skip


def _decision(history: PairHistory) -> Section:
    decision = history["decision"]
    if decision is None:
        return Section("decision", "not filtered yet", (), "warn", missing=("run `align filter`",))
    facts = known(
        ("pair", history["pair"]["key"]), ("reasons", ", ".join(decision["reasons"])), ("cuts", history["cuts_line"]),
        *((one["rule"], _applied(one)) for one in history["rules"]),
    )  # fmt: skip
    title = "kept: no rule drops it" if decision["keep"] else f"dropped: {decision['reason']}"
    return Section("decision", title, facts, "good" if decision["keep"] else "bad")


def _applied(rule: RuleResult) -> str:
    """A rule in one line: its verdict, the pair's values, its cut."""
    drops = f"drops where {rule['drops_where']}" if rule["drops_where"] else ""
    return "; ".join(filter(None, (rule["verdict"], rule_values(rule["values"]), drops)))


def _verdict(one: SeenBy) -> str:
    held = ", ".join(split for split in one.seen or () if split != "train")
    return f"not trained on it, saw it in split {held}" if held and not one.trained else _WORDS[one.trained]


def _seen_by(one: SeenBy, around: Surroundings) -> Iterator[Section]:
    """A version or run that saw a pair or may have, with other data in which it is; others are only counted."""
    if one.seen is not None and not one.seen:
        return
    here = digest_of(around.paths.shards)
    for digest, counts in one.counts.items():
        if digest and digest != here and counts != {}:
            files = around.revisions.find(digest, around.paths.shards, around.registered.revisions(digest))
            if counts is None or files is None:
                yield unknown_data(digest)
            else:
                held = ", ".join(f"{number} in {split}" for split, number in counts.items())
                yield Data(files, around.paths).shards((("of these pairs", held),))
    if one.version is not None:
        facts = (("pair", f"{_verdict(one)}; {one.why}"),)
        yield from version_sections(around.registered, one.version, around.root, facts)
    elif one.run is not None:
        yield run_section(around.registered, one.run_id, one.run.tags, around.root)


def _answer(trace: Trace, every: list[SeenBy], registered: Registered, num_pairs: int) -> None:
    it = "it" if num_pairs == 1 else "some of them"
    versions = [one for one in every if one.version]
    trained = [one.title for one in versions if one.trained]
    unknown = [one.title for one in versions if one.trained is None]
    if trained:
        trace.answers.append(f"trained on {it}: {', '.join(trained)}")
    champions = [one for one in versions if one.version and one.version.number == registered.aliases.get(CHAMPION)]
    for one in champions:
        verdict = {True: "was trained on", False: "was not trained on", None: "may have been trained on"}[one.trained]
        trace.answers.append(f"the champion, {one.title.partition(' (')[0]}, {verdict} {it}")
    if versions and not champions:
        trace.answers.append("there is no champion")
    if unknown:
        trace.answers.append(f"unknown of: {', '.join(unknown)}")
    if versions and not trained and not unknown:
        trace.answers.append(f"no registered version was trained on {it}")
    if not versions:
        trace.answers.append(f"'{registered.name}' has no registered version")


def _index(trace: Trace, image_ids: frozenset[str], around: Surroundings) -> None:
    index = around.paths.index
    filters = [("image_id", "in", sorted(image_ids))]
    try:
        held = pq.read_table(index / ITEMS, columns=["image_id"], filters=filters).num_rows
    except FileNotFoundError:
        return
    except (pa.ArrowInvalid, OSError) as error:
        trace.notes.append(f"{index.as_posix()}: unreadable ({error}); run `align index` again")
        return
    found = index_section(around.registered, index, (("holds", f"{held} of the pictures"),)) if held else None
    if found is None:
        trace.answers.append(f"{'none of the pictures is' if len(image_ids) > 1 else 'the picture is not'} in {index}")
        return
    trace.add(found[0])
    what = f"{held} of {len(image_ids)} pictures are" if len(image_ids) > 1 else "the picture is"
    trace.answers.append(f"{what} in {index}, made by {dict(found[0].facts)['made by']}")
