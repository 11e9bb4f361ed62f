"""A trace forward from pairs: each one's page, decision, shard, and the models and the index that have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.errors import AlignError
from align.interfaces.store import FetchTar
from align.lineage.trace.data import (
    Part,
    add_page,
    add_shards,
    add_source,
    add_verdict,
    are_decisions_of,
    cut,
    picture_of,
    unknown_data,
)
from align.lineage.trace.graph import Graph, Node, State, Table, known
from align.lineage.trace.models import Models, add_index, add_run, add_version
from align.lineage.trace.pair_history import PairHistory, look_up, of_models
from align.lineage.trace.text import rule_values
from align.lineage.versions.data_chain import DataChain, chain_of, checkout_chain
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.raw_pairs import RawRow
from align.lineage.versions.shard_samples import StoredSample, counted, iter_stored_samples
from align.lineage.versions.who_saw import SeenBy, WhoSaw, digest_of, recorded_data, who_saw

#: How many pairs of a page or an address are traced.
MAX_PAIRS = 20
_NO_PICTURE = "its picture was never downloaded, so no model can have seen it"


@dataclass(frozen=True)
class Surroundings:
    """What a trace reads.

    Attributes:
        root: the checkout.
        paths: section `paths`.
        rules: section `filter`.
        register: section `register`, with the name of the model that is traced.
        versions: the data that git and DVC have recorded.
        models: what MLflow knows.
        fetch: gets tars from the object store.
        given: the folder of indexes of tars that others made.
    """

    root: Path
    paths: PathsConfig
    rules: FilterConfig
    register: RegisterConfig
    versions: DataVersions
    models: Models
    fetch: FetchTar | None
    given: Path


@dataclass(frozen=True)
class _Found:
    """What is known of a pair besides its history: the source's node, the pictures' samples."""

    source: str
    samples: Mapping[str, StoredSample]
    shards: Path


def trace_pairs(graph: Graph, rows: list[RawRow], around: Surroundings) -> None:
    """Adds the chains of these pairs to the graph."""
    if len(rows) > MAX_PAIRS:
        graph.notes.append(f"{len(rows):,} pairs match; the first {MAX_PAIRS} are traced")
        rows = rows[:MAX_PAIRS]
    chain = checkout_chain(digest_of(around.paths.shards) or "", around.paths)
    source = add_source(graph, chain)
    if not are_decisions_of(chain):
        graph.notes.append(
            f"{chain.filtered.path} is not what {chain.shards.path} was made of; `dvc repro` makes it again"
        )
    histories = [_history(row, around) for row in rows]
    wanted = {row["sha256"] for row in rows if row["sha256"]}
    samples = _samples(graph, around, wanted) if chain.digest else None
    every_end = []
    for history in histories:
        every_end.append(_add_pair(graph, history, chain, _Found(source, samples or {}, around.paths.shards)))
        if not history["pair"]["sha256"]:
            history["models_line"] = _NO_PICTURE
    graph.pairs += histories
    image_ids = frozenset(wanted)
    if not image_ids:
        graph.answers.append(_NO_PICTURE)
        return
    in_shards = [end for end in every_end if graph.nodes[end].kind == "shard"]
    if around.models.problem:
        for history in histories:
            history["models_line"] = history["models_line"] or around.models.problem
    else:
        _add_models(graph, histories, chain, samples, in_shards, around)
    _index(graph, image_ids, in_shards, around)


def _add_models(
    graph: Graph,
    histories: list[PairHistory],
    chain: DataChain,
    samples: Mapping[str, StoredSample] | None,
    ends: list[str],
    around: Surroundings,
) -> None:
    """The versions and runs that saw one of the pairs, as nodes; also in the history of each pair, with its text.

    Args:
        graph: is added to.
        histories: of the pairs.
        chain: the checkout's data.
        samples: of the pictures, in the checkout's shards; None: these could not be read.
        ends: ids of the shards' nodes that the pairs came to.
        around: what is read.
    """
    image_ids = frozenset(one["pair"]["sha256"] for one in histories if one["pair"]["sha256"])
    stored = {} if samples is None else {around.paths.shards: list(samples.values())}  # each data is read once

    def saw_these(pictures: frozenset[str], text: str | None) -> WhoSaw:
        def count(folder: Path) -> Mapping[str, int]:
            if folder not in stored:
                stored[folder] = list(iter_stored_samples(folder, around.fetch, image_ids))
            return counted((one for one in stored[folder] if one.image_id in pictures), text)

        return who_saw(around.register, around.paths.shards, around.versions, count)

    for history in histories:
        if image_id := history["pair"]["sha256"]:
            saw = saw_these(frozenset({image_id}), history["decision"]["text"] if history["decision"] else None)
            history["models"], history["models_line"] = of_models(saw), saw.problem
    if len(histories) > 1:
        saw = saw_these(image_ids, None)
    if saw.problem:
        graph.notes.append(saw.problem)
    for seen in (*saw.models, *saw.runs):
        _add_seen_by(graph, seen, chain, ends, around)
    _answer(graph, saw.models, len(histories))


def _history(row: RawRow, around: Surroundings) -> PairHistory:
    paths = around.paths
    return look_up(row, around.rules, filtered=paths.filtered, report=paths.reports / "filter", policy=paths.policy)


def _samples(graph: Graph, around: Surroundings, image_ids: set[str]) -> dict[str, StoredSample] | None:
    """Picture -> its sample; one pass over the shards for all of them. None if these cannot be read."""
    try:
        found = iter_stored_samples(around.paths.shards, around.fetch, image_ids)
        return {sample.image_id: sample for sample in found}
    except AlignError as error:
        graph.notes.append(str(error))
        return None


def _add_pair(graph: Graph, history: PairHistory, chain: DataChain, found: _Found) -> str:
    """Page, pair, decision, verdict and sample; returns the id of the last link that the pair came to."""
    row, decision = history["pair"], history["decision"]
    sample = found.samples.get(row["sha256"])
    if sample is None or decision is None or not decision["keep"] or row["key"] not in sample.keys:
        sample = None
    picture = picture_of(sample, found.shards) if sample else None
    shown = (picture,) if picture else ()
    page = add_page(graph, row, found.source, (), {"text from": row["text_source"] or ""})
    status = f"{row['status']}{': ' + row['error_message'] if row['error_message'] else ''}"
    size = f"{row['original_width'] or row['width']} x {row['original_height'] or row['height']} px"
    normalised = decision["text"] if decision and decision["text"] != row["caption"] else ""
    facts = known((
        ("text", row["caption"]), ("normalised", normalised),
        ("picture", row["url"]), ("download", status), ("size", size if row["width"] else ""),
        ("sha256", row["sha256"]), ("table", f"{chain.raw.path}/{row['raw_shard']}.parquet"),
        ("take-down", "opted out by {kind} {value}".format(**history["opted_out"]) if history["opted_out"] else ""),
    ))  # fmt: skip
    node = Node(
        f"pair {row['key']}", "pair", f"pair {row['key']}", cut(row["caption"] or "", 60), facts, pictures=shown
    )
    pair = graph.add(node, page)
    graph.subjects.append(pair)
    decided = graph.add(_decision(history), pair)
    if sample is None:
        return decided
    history["place"] = {"split": sample.split, "tar": sample.tar, "sample": sample.key, "num_texts": len(sample.texts)}
    verdict = add_verdict(graph, chain, decided)
    part = Part(sample.key, sample.tar, known((
        ("split", sample.split), ("sample", sample.key), ("texts", len(sample.texts)),
        ("picture at", f"byte {sample.offset_bytes:,}, {sample.size_bytes:,} bytes"),
    )))  # fmt: skip
    return add_shards(graph, chain, verdict, part=part)


def _decision(history: PairHistory) -> Node:
    key, decision = history["pair"]["key"], history["decision"]
    if decision is None:
        return Node(f"decision {key}", "decision", "not filtered yet", state="warn", missing=("run `align filter`",))
    rules = tuple(
        (one["rule"], "drops first" if one["first"] else one["verdict"], rule_values(one["values"]),
         one["drops_where"] or "")
        for one in history["rules"]
    )  # fmt: skip
    first = next((one for one in history["rules"] if one["first"]), None)
    facts = known((
        ("reasons", ", ".join(decision["reasons"])),
        ("rule", first["what"] if first else ""), ("drops where", first["drops_where"] if first else ""),
        ("values", rule_values(first["values"]) if first else ""), ("cuts", history["cuts_line"]),
    ))  # fmt: skip
    title = "kept: no rule drops it" if decision["keep"] else f"dropped: {decision['reason']}"
    state: State = "good" if decision["keep"] else "bad"
    table = Table("Rules", ("rule", "verdict", "values", "drops where"), rules)
    return Node(f"decision {key}", "decision", title, facts=facts, state=state, tables=(table,))


def _add_seen_by(graph: Graph, one: SeenBy, chain: DataChain, ends: list[str], around: Surroundings) -> None:
    """A version or run that saw a pair or may have; those that did not see one are only counted."""
    if one.seen is not None and not one.seen:
        return
    before = []
    for digest, counts in one.counts.items():
        if counts and digest == chain.digest:
            before += ends
        elif counts:
            before.append(_other_data(graph, digest, counts, around))
        elif counts is None and digest:
            before.append(unknown_data(graph, digest))
    if one.version is not None:
        seen = add_version(graph, around.models, one.version, around.root, *before)
        held = ", ".join(split for split in one.seen or () if split != "train")
        verdict = (
            "unknown whether it saw it" if one.trained is None else "TRAINED on it" if one.trained
            else f"not trained on it; saw it in split {held}"
        )  # fmt: skip
        node = graph.nodes[seen]
        graph.nodes[seen] = replace(
            node, brief=f"{node.brief}: {verdict}", facts=(("pair", f"{verdict}; {one.why}"), *node.facts)
        )
    elif one.run is not None:
        add_run(graph, around.models, one.run_id, one.run.tags, around.root, *before)


def _other_data(graph: Graph, digest: str, counts: Mapping[str, int], around: Surroundings) -> str:
    """Data of another version that has the pairs too."""
    found = recorded_data(around.paths.shards, around.versions, {digest}).get(digest)
    if found is None:
        return unknown_data(graph, digest)
    other = chain_of(digest, found, around.versions, around.paths)
    held = ", ".join(f"{number} in {split}" for split, number in counts.items())
    part = Part("the pairs", f"data {digest[:12]}", (("of these pairs", held),))
    pairs = [one.id for one in graph.of_kind("pair")]
    return add_shards(graph, other, *pairs, part=part)


def _answer(graph: Graph, models: tuple[SeenBy, ...], num_pairs: int) -> None:
    it = "it" if num_pairs == 1 else "some of them"
    trained = [one.title for one in models if one.trained]
    unknown = [one.title for one in models if one.trained is None]
    if trained:
        graph.answers.append(f"trained on {it}: {', '.join(trained)}")
    champions = [one for one in models if "champion" in one.aliases]
    for one in champions:
        verdict = {True: "was trained on", False: "was not trained on", None: "may have been trained on"}[one.trained]
        graph.answers.append(f"the champion, {one.title.partition(' (')[0]}, {verdict} {it}")
    if models and not champions:
        graph.answers.append("there is no champion")
    if unknown:
        graph.answers.append(f"unknown of: {', '.join(unknown)}")
    if models and not trained and not unknown:
        graph.answers.append(f"no registered version was trained on {it}")


def _index(graph: Graph, image_ids: frozenset[str], ends: list[str], around: Surroundings) -> None:
    index = around.paths.index
    try:
        held = _indexed(index / "items.parquet", image_ids)
    except FileNotFoundError:
        return
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        graph.notes.append(f"{index.as_posix()}: unreadable ({error}); run `align index` again")
        return
    node_id = add_index(graph, around.models, around.versions, around.paths, around.root) if held else None
    if node_id is None:
        graph.answers.append(f"{'none of the pictures is' if len(image_ids) > 1 else 'the picture is not'} in {index}")
        return
    node = graph.nodes[node_id]
    graph.nodes[node_id] = replace(node, facts=(("holds", f"{held} of the pictures"), *node.facts))
    for end in ends if not graph.before(node) else ():
        graph.add(node, end)
    what = f"{held} of {len(image_ids)} pictures are" if len(image_ids) > 1 else "the picture is"
    graph.answers.append(f"{what} in {index}, made by {dict(node.facts)['made by']}")


def _indexed(items: Path, image_ids: frozenset[str]) -> int:
    """How many of the pictures an index holds; reads one column, a row group at a time."""
    found: set[str] = set()
    wanted = pa.array(sorted(image_ids), pa.string())
    file = pq.ParquetFile(items, pre_buffer=False)
    for batch in file.iter_batches(columns=["image_id"]):
        column = batch["image_id"]
        found |= set(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return len(found)
