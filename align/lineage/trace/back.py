"""Traces from a model version, a run or a shard: back to the web pages, and on to aliases and the index."""

from __future__ import annotations

from align.errors import DataError
from align.formats.shards import Shard, SplitName
from align.lineage.runs.run import ComparedRun
from align.lineage.runs.run_list import Place
from align.lineage.trace.data import add_data, unknown_data
from align.lineage.trace.graph import Graph
from align.lineage.trace.models import MODEL, add_index, add_run, add_version
from align.lineage.trace.pairs import Surroundings
from align.lineage.versions.data_chain import chain_of, checkout_chain
from align.lineage.versions.shard_samples import manifest_at
from align.lineage.versions.who_saw import DATA, recorded_data, training_data
from align.services.tracking.registry import Version


def trace_version(graph: Graph, version: Version, around: Surroundings) -> None:
    """From a version back to the pages of all data that trained it."""
    data = training_data(version.tags)
    ends = [_add_digest(graph, digest, around) for digest in data.digests if digest]
    graph.subjects.append(add_version(graph, around.models, version, around.root, *ends))
    trained = f"{len(data.trained_on)} version{'s' if len(data.trained_on) > 1 else ''} of the data"
    graph.answers.append(f"trained on {trained}" if data.trained_on else "no data that is known trained it")
    graph.answers += data.gaps
    _index_of(graph, around)


def trace_run(graph: Graph, place: Place, around: Surroundings) -> None:
    """From a run back to its data, and on to the versions that it registered."""
    tags = dict(place.tracked.tags) if place.tracked else {}
    numbers = _numbers(place)
    digest = tags.get(DATA) or numbers.digests.get("data", "")
    model = tags.get(MODEL) or numbers.digests.get("model", "")
    run_id = place.tracked.run_id if place.tracked else ""
    ends = [_add_digest(graph, one, around) for one in training_data({DATA: digest, **tags}).digests if one]
    if not ends:
        graph.notes.append(f"{place.name}: no data of it is recorded; it is {place.state}")
    versions = [
        one for one in around.models.versions
        if (run_id and one.run_id == run_id) or (model and one.tags.get(MODEL) == model)
    ]  # fmt: skip
    branch = f"run/{place.branch}" if place.branch else ""
    origin = {"align.git_revision": place.commit} if place.commit else {}
    is_its_own = [one for one in versions if one.run_id == run_id or not run_id]
    if not is_its_own:
        end = add_run(graph, around.models, run_id, tags | origin, around.root, *ends, branch=branch)
        graph.subjects.append(end)
        ends = [end, *ends] if versions else ends
    for one in versions:
        add_version(graph, around.models, one, around.root, *ends)
        graph.answers.append(f"its model is {one.name} version {one.number}")
    if is_its_own:
        graph.subjects += [node.id for node in graph.of_kind("run")]
    if not versions and not around.models.problem:
        graph.answers.append("no registered version has its model")
    _index_of(graph, around)


def trace_shard(graph: Graph, split: SplitName, shard: Shard, around: Surroundings) -> None:
    """From a tar of the checkout's data back to its pages, and on to the versions that its data trained."""
    paths = around.paths
    digest = manifest_at(paths.shards).digest
    end = add_data(graph, checkout_chain(digest, paths), (split, shard))
    graph.subjects.append(end)
    num_trained = 0
    for version in around.models.versions:
        data = training_data(version.tags)
        if digest in data.digests:
            add_version(graph, around.models, version, around.root, end)
            num_trained += digest in data.trained_on
    what = f"trained {num_trained} versions" if num_trained != 1 else "trained 1 version"
    graph.answers.append(f"its data {what}" if split == "train" else f"split {split} trains no model; its data {what}")
    _index_of(graph, around)


def _add_digest(graph: Graph, digest: str, around: Surroundings) -> str:
    """The data half of one digest; a node that says so where it is not here."""
    found = recorded_data(around.paths.shards, around.versions, {digest}).get(digest)
    if found is None:
        return unknown_data(graph, digest)
    return add_data(graph, chain_of(digest, found, around.versions, around.paths))


def _numbers(place: Place) -> ComparedRun:
    try:
        return place.read()
    except DataError as error:
        return ComparedRun(place.name, place.commit, "", None, {}, notes=[str(error)])


def _index_of(graph: Graph, around: Surroundings) -> None:
    """The index, where a version of this trace made it."""
    if (around.paths.index / "index.json").is_file() and graph.of_kind("version"):
        node_id = add_index(graph, around.models, around.versions, around.paths, around.root)
        if node_id is None:
            return
        made_by = dict(graph.nodes[node_id].facts)["made by"]
        graph.answers.append(f"the index in {around.paths.index.as_posix()} was made by {made_by}")
        if not graph.before(graph.nodes[node_id]):
            del graph.nodes[node_id]  # another version made it
