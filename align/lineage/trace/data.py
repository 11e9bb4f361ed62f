"""The data half of a trace: from the shards of one version back to verdict, decisions, pairs, pages and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from align.errors import DataError
from align.formats.filtered import DECISION_FILES, DECISIONS, decisions_digest, parts_of
from align.formats.raw import MANIFEST as RAW_MANIFEST
from align.formats.shards import MANIFEST, SPLITS, Manifest, Shard, SplitName, read_manifest
from align.formats.verdict import NOT_GATED, VERDICT
from align.lineage.trace.graph import Graph, Node, Picture, State, Table, known
from align.lineage.versions.data_chain import DataChain, read_json
from align.lineage.versions.raw_pairs import RawRow, find_pairs
from align.lineage.versions.shard_samples import SHARD_FILES, StoredSample, samples_of

_REPORT = "report.json"
#: The number of sample pages that are shown of a version of the data.
NUM_SAMPLES = 4
_MAX_TITLE = 56


@dataclass(frozen=True)
class Part:
    """A part of the shards that a trace is about.

    Attributes:
        name: unique within the data, such as the key of a sample.
        title: such as `train/00003.tar`.
        facts: what is known of it.
    """

    name: str
    title: str
    facts: tuple[tuple[str, str], ...]


def cut(text: str, width: int = _MAX_TITLE) -> str:
    """Foreign text in one line, cut with an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def add_source(graph: Graph, chain: DataChain) -> str:
    """The source that data/raw was read from, by its manifest and the report of ingest."""
    manifest, report = read_json(chain.raw, RAW_MANIFEST) or {}, read_json(chain.ingest, _REPORT) or {}
    made_with = manifest.get("made_with") or {}
    archive, kind = made_with.get("archive"), (made_with.get("ingest") or {}).get("source")
    gone = [] if report else [chain.ingest.why_missing]
    if not manifest and chain.raw.file("00000.parquet") is None:
        gone.append(chain.raw.why_missing)
    facts = known((
        ("kind", kind), ("files", _number(report, "num_files")), ("pages with pairs", _number(report, "num_pages")),
        ("pages", _number(report, "num_pages_in_archive")), ("data/raw", str(manifest.get("digest", ""))[:12]),
    ))  # fmt: skip
    title = cut(str(archive)) if archive else "source not recorded"
    return graph.add(
        Node(f"source {chain.digest}", "source", title, facts=facts, state=_state(gone), missing=tuple(gone))
    )


def add_data(graph: Graph, chain: DataChain, tar: tuple[SplitName, Shard] | None = None) -> str:
    """The whole data half; returns the id of the shards' node.

    Args:
        graph: is added to.
        chain: the files.
        tar: that the trace is about; None: all of the shards, and pages of the training split.
    """
    source = add_source(graph, chain)
    report = read_json(chain.ingest, _REPORT)
    facts = [("pictures", _number(report, "num_images")), ("may be retried", _number(report, "num_retryable"))]
    statuses = (report or {}).get("statuses") or {}
    rows = tuple((str(name), int(num)) for name, num in sorted(statuses.items(), key=lambda item: -item[1]))
    pages, gone = [], [] if report else [chain.ingest.why_missing]
    try:
        for row, pictures in _with_rows(chain, _samples(chain, tar)):
            pages.append(add_page(graph, row, source, pictures, {f"pair {row['key']}": row["caption"] or ""}))
    except DataError as error:
        gone.append(f"no pages are shown: {error}")
    if chain.raw.here("*.parquet") is None:
        gone.append(chain.raw.why_missing)
    pairs = Node(
        f"pairs {chain.digest}", "pair", f"{_number(report, 'num_pairs') or 'unknown number of'} pairs", "in data/raw",
        known(facts), _state(gone), tuple(dict.fromkeys(gone)),
        tables=(Table("Downloads", ("status", "pairs"), rows),) if rows else (),
    )  # fmt: skip
    graph.add(pairs, *(pages or [source]))
    verdict = add_verdict(graph, chain, graph.add(add_funnel(chain), pairs.id))
    return add_shards(graph, chain, verdict, part=_tar_part(tar[1]) if tar else None)


def add_page(graph: Graph, row: RawRow, source: str, pictures: tuple[Picture, ...], facts: Mapping[str, str]) -> str:
    """The page in which a pair was found, or the row of a table, which names no page.

    Args:
        graph: is added to.
        row: the pair.
        source: id of the source's node.
        pictures: that it shows.
        facts: more of them: label -> value.
    """
    page, url = row["page_url"] or "", row["url"] or ""
    if page:
        title = cut(page.partition("://")[2] or page)
        node = Node(f"page {page}", "page", title, facts=known((("page", page), *facts.items())), pictures=pictures)
    else:
        title = f"row of {cut(url.partition('://')[2] or url, 40)}"
        about = known((("picture", url), ("page", "not recorded: the source is no web archive"), *facts.items()))
        node = Node(f"row {row['key']}", "page", title, facts=about, pictures=pictures)
    if (earlier := graph.nodes.get(node.id)) and pictures:
        facts_of_both = tuple(dict.fromkeys((*earlier.facts, *node.facts)))
        shown = tuple(dict.fromkeys((*earlier.pictures, *pictures)))
        graph.nodes[node.id] = replace(earlier, facts=facts_of_both, pictures=shown)
    return graph.add(node, source)


def add_verdict(graph: Graph, chain: DataChain, *before: str) -> str:
    """The gate before the shards: its verdict, who accepted what, and whether it is about these decisions."""
    verdict, report = read_json(chain.quality, VERDICT), read_json(chain.quality, _REPORT) or {}
    made = read_json(chain.shard, _REPORT) or {}
    if verdict is None:
        node = Node(f"verdict {chain.digest}", "verdict", "verdict not here", state="gone",
                    missing=(chain.quality.why_missing,))  # fmt: skip
        return graph.add(node, *before)
    expectations, accepted = _expectations(report)
    problems = []
    if "decisions" in made and made["decisions"] != verdict.get("data"):
        problems.append("it is about other decisions than those that the shards were made of; run `align validate`")
    passed = bool(verdict.get("passed")) and not problems
    state: State = "bad" if not passed else "warn" if accepted else "good"
    facts = known((
        ("verdict", "passed" if verdict.get("passed") else f"failed: {verdict.get('failure')}"),
        ("about", f"decisions {str(verdict.get('data'))[:12]}"), ("expectations", expectations),
        *(("accepted", line) for line in accepted), *(("problem", line) for line in problems),
    ))  # fmt: skip
    title = "passed, with acceptances" if state == "warn" else "passed" if passed else "failed, or of other data"
    return graph.add(Node(f"verdict {chain.digest}", "verdict", title, facts=facts, state=state), *before)


def add_funnel(chain: DataChain) -> Node:
    """What the filter kept and dropped."""
    report = read_json(chain.filter, _REPORT)
    if report is None:
        return Node(f"funnel {chain.digest}", "decision", "decisions not here", state="gone",
                    missing=(chain.filter.why_missing,))  # fmt: skip
    total, kept = int(report.get("num_pairs", 0)), int(report.get("num_kept", 0))
    rows = tuple(
        (str(row["reason"]), int(row["num_first"]), int(row["num_remaining"]),
         int(row["num_remaining"]) / max(total, 1), str(row["drops_where"] or "off"))
        for row in report.get("funnel") or ()
    )  # fmt: skip
    funnel = Table("Funnel", ("rule", "drops first", "left", "share left", "drops where"), rows, bar=3)
    first = sorted(((num, reason) for reason, num, *_ in rows if num), reverse=True)
    facts = known((
        ("kept", f"{kept:,} of {total:,}"), ("evaluation sets kept out", _number(report, "num_evaluation_sets")),
        ("dropped most", ", ".join(f"{reason} {num:,}" for num, reason in first[:4])),
    ))  # fmt: skip
    title = f"{kept:,} of {total:,} pairs kept"
    return Node(f"funnel {chain.digest}", "decision", title, facts=facts, tables=(funnel,) if rows else ())


def add_shards(graph: Graph, chain: DataChain, *before: str, part: Part | None = None) -> str:
    """The shards, or a part of them; with the verdict of the second gate."""
    manifest = manifest_of(chain)
    counts = [(split, manifest.splits[split]) for split in SPLITS if split in manifest.splits] if manifest else []
    second = read_json(chain.quality_shards, VERDICT)
    about = second is not None and second.get("data") == chain.digest
    checked = "not recorded" if not second or not about else "passed" if second.get("passed") else "failed"
    _, accepted = _expectations(read_json(chain.quality_shards, _REPORT) or {})
    facts = known((
        *(part.facts if part else ()), ("data", chain.digest), ("where", chain.where),
        *((split, f"{one.num_images:,} pictures, {one.num_pairs:,} pairs, {len(one.shards):,} tars")
          for split, one in counts if one.num_images),
        ("picture size", f"{manifest.image_px} px square" if manifest else ""),
        ("second gate", checked), *(("accepted", line) for line in accepted),
    ))  # fmt: skip
    gone = _missing_tars(chain, manifest) if manifest else (chain.shards.why_missing,)
    state: State = "gone" if gone else "bad" if checked == "failed" else "warn" if accepted else ""
    data = f"data {chain.digest[:12]}"
    title, brief = (part.title, f"of {data}") if part and part.title != data else (data, "")
    node = Node(f"shards {chain.digest} {part.name if part else ''}", "shard", title, brief, facts, state, gone)
    return graph.add(node, *before)


def unknown_data(graph: Graph, digest: str) -> str:
    """Data that is neither checked out nor recorded here."""
    how = "`git fetch --all` brings the branches of other machines, then `dvc fetch --all-branches` their data"
    line = f"data {digest[:12]} is neither checked out nor in any dvc.lock that git has; {how}"
    return graph.add(Node(f"shards {digest} ", "shard", f"data {digest[:12]}", state="gone", missing=(line,)))


def given_data(graph: Graph, digest: str, indexes: Path) -> str:
    """Tars that others made: nothing is known of what came before. One of `indexes` may say where they lie."""
    facts, title = [("data", digest), ("gate", f"{NOT_GATED}, and no rule has seen it")], f"data {digest[:12]}"
    gone = [f"where the tars of {title} lie is not known here: their index is on another machine, or removed"]
    for manifest in (read_manifest(path.parent, given=True) for path in indexes.glob(f"*/{MANIFEST}")):
        if manifest.digest == digest:
            tars, gone = [str(task.shard.given) for task in manifest.tasks], []
            splits = manifest.splits.items()
            facts += [(name, f"{one.num_images:,} pictures, {one.num_pairs:,} pairs") for name, one in splits]
            facts += [("tars", f"{len({*tars}):,}, from {min(tars)} to {max(tars)}")]
    return graph.add(Node(f"shards {digest} ", "shard", title, NOT_GATED, tuple(facts), "warn", tuple(gone)))


def manifest_of(chain: DataChain) -> Manifest | None:
    """The manifest of the shards; None if it is not available or has another layout."""
    folder = chain.shards.here(MANIFEST) if chain.shards.file(MANIFEST) else None
    try:
        return read_manifest(folder) if folder else None
    except DataError:
        return None


def are_decisions_of(chain: DataChain) -> bool:
    """Whether the present data/filtered is what the shards were made of; true if that is unknown."""
    made, folder = read_json(chain.shard, _REPORT) or {}, chain.filtered.here(DECISION_FILES)
    if folder is None or not parts_of(folder, DECISIONS) or "decisions" not in made:
        return True
    return bool(made["decisions"] == decisions_digest(folder))


def picture_of(sample: StoredSample, shards: Path) -> Picture | None:
    """A sample's picture, as it was trained on; None if the tar is not here."""
    try:
        with (shards / sample.tar).open("rb") as file:
            file.seek(sample.offset_bytes)
            return Picture(file.read(sample.size_bytes), sample.texts[0])
    except OSError:
        return None


def _tar_part(shard: Shard) -> Part:
    """One tar of the shards."""
    facts = (("pictures", f"{shard.num_images:,}"), ("pairs", f"{shard.num_pairs:,}"),
             ("bytes", f"{shard.num_bytes:,}"), ("sha256", shard.sha256))  # fmt: skip
    return Part(shard.path, shard.path, facts)


def _missing_tars(chain: DataChain, manifest: Manifest) -> tuple[str, ...]:
    """One line where tars are not on this machine."""
    folder = chain.shards.here(*SHARD_FILES)
    paths = [shard.path for split in manifest.splits.values() for shard in split.shards]
    absent = len(paths) if folder is None else sum(not (folder / path).is_file() for path in paths)
    if not absent:
        return ()
    how = "store.objects fetches them when they are read, if they were put there; else `dvc checkout` or `dvc pull`"
    return (f"{absent:,} of {len(paths):,} tars of data {chain.digest[:12]} are not on this machine; {how}",)


def _samples(chain: DataChain, tar: tuple[SplitName, Shard] | None) -> list[StoredSample]:
    """A few samples of a tar, or of the first one of the training split; none if it is not on this machine."""
    manifest, folder = manifest_of(chain), chain.shards.here(*SHARD_FILES)
    if folder is None or manifest is None:
        return []
    return _spread(folder, tar[0], (tar[1],)) if tar else _spread(folder, "train", manifest.splits["train"].shards)


def _spread(folder: Path, split: SplitName, shards: tuple[Shard, ...]) -> list[StoredSample]:
    """A few samples of the first tar that has any."""
    for shard in shards:
        if shard.num_images and (folder / shard.path).is_file():
            chosen = sorted({number * shard.num_images // NUM_SAMPLES for number in range(NUM_SAMPLES)})
            return list(samples_of(folder, split, shard, chosen))
    return []


def _with_rows(chain: DataChain, samples: list[StoredSample]) -> list[tuple[RawRow, tuple[Picture, ...]]]:
    folder = chain.raw.here("*.parquet") if samples else None
    if folder is None:
        return []
    shards = chain.shards.here(*SHARD_FILES)
    found: list[tuple[dict[str, Any], tuple[Picture, ...]]] = []
    rows = {row["key"]: row for row in find_pairs(folder, "key", {sample.keys[0] for sample in samples})}
    for sample in samples:
        picture = picture_of(sample, shards) if shards else None
        if sample.keys[0] in rows:
            found.append((rows[sample.keys[0]], (picture,) if picture else ()))
    return found


def _expectations(report: Mapping[str, Any]) -> tuple[str, list[str]]:
    """How many passed, and what people accepted, as "NAME, by WHO: WHY"."""
    rows = report.get("expectations") or []
    accepted = [(row, row["accepted"]) for row in rows if row.get("accepted")]
    lines = [f"{row.get('name')}, by {one.get('by')}: {one.get('reason')}" for row, one in accepted]
    return f"{sum(bool(row.get('passed')) for row in rows)} of {len(rows)} passed" if rows else "", lines


def _number(report: Mapping[str, Any] | None, key: str) -> str:
    value = (report or {}).get(key)
    return f"{value:,}" if isinstance(value, int) else ""


def _state(gone: list[str]) -> State:
    return "gone" if gone else ""
