"""trace: the chain of everything, both ways: page, pair, decision, verdict, shard, run, version, alias, index.

    align trace align@champion           from the champion back to the web pages
    align trace 000000012                from a pair to the champion; also a URL, or a picture's sha256
    align trace demo                     a run: branch run/demo, an MLflow run id, a Prefect flow run
    align trace train/00003.tar          a shard, both ways

It only reads. A link that is not on this machine is shown as missing, with what brings it; without MLflow the half of
the data is shown. `--log` also keeps the page with the version's run in MLflow. That happens by itself for each version
whose alias moves (`align.lineage.trace.version_pages`).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from align.config import Params
from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, HealthConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.display.console import say, show, show_json
from align.durable.files import to_json, write_text
from align.errors import ConfigError, DataError, ServiceError
from align.formats.shards import GIVEN, Shard, SplitName, read_manifest
from align.lineage.runs.listing import Runs
from align.lineage.runs.run import Run
from align.lineage.trace.data import add_data, given_data, unknown_data
from align.lineage.trace.graph import Graph, missing
from align.lineage.trace.models import MODEL, Models, add_index, add_run, add_version
from align.lineage.trace.page import as_page
from align.lineage.trace.pairs import Surroundings, trace_pairs
from align.lineage.trace.subject import Names, Subject
from align.lineage.trace.text import text_lines
from align.lineage.versions.data_chain import chain_of, checkout_chain
from align.lineage.versions.data_versions import DataVersions
from align.lineage.versions.who_saw import DATA, TRAINED_ON, recorded_data, training_data
from align.services.s3.store import fetcher
from align.services.tracking.registry import Version


def trace_version(graph: Graph, version: Version, around: Surroundings) -> None:
    """From a version back to the pages of all data that trained it."""
    data = training_data(version.tags)
    ends = [_add_digest(graph, digest, around, data.not_gated) for digest in data.digests if digest]
    graph.subjects.append(add_version(graph, around.models, version, around.root, *ends))
    trained = f"{len(data.trained_on)} version{'s' if len(data.trained_on) > 1 else ''} of the data"
    graph.answers.append(f"trained on {trained}" if data.trained_on else "no data that is known trained it")
    graph.answers += data.gaps
    _index_of(graph, around)


def trace_run(graph: Graph, place: Run, around: Surroundings) -> None:
    """From a run back to its data, and on to the versions that it registered."""
    tags = dict(place.tracked.tags) if place.tracked else {}
    digest, model, run_id = tags.get(DATA, ""), tags.get(MODEL, ""), place.run_id
    data = training_data({DATA: digest, TRAINED_ON: digest, **tags})
    ends = [_add_digest(graph, one, around, data.not_gated) for one in data.digests if one]
    if not ends:
        graph.notes.append(f"{place.name}: no data of it is recorded; it is {place.state}")
    versions = [
        one for one in around.models.versions
        if (run_id and one.run_id == run_id) or (model and one.tags.get(MODEL) == model)
    ]  # fmt: skip
    origin = {"align.git_revision": place.commit} if place.commit else {}
    is_its_own = [one for one in versions if one.run_id == run_id or not run_id]
    if not is_its_own:
        end = add_run(graph, around.models, run_id, tags | origin, around.root, *ends, branch=place.branch)
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
    digest = read_manifest(paths.shards).digest
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


def _add_digest(graph: Graph, digest: str, around: Surroundings, not_gated: Sequence[str]) -> str:
    """The data half of one digest; a node that says so where it is not here."""
    if digest in not_gated:
        return given_data(graph, digest, around.given)
    found = recorded_data(around.paths.shards, around.versions, {digest}).get(digest)
    if found is None:
        return unknown_data(graph, digest)
    return add_data(graph, chain_of(digest, found, around.versions, around.paths))


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


#: The page as an artifact of the version's run in MLflow.
ARTIFACT = Path("lineage/lineage.html")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align trace`.

    Raises:
        ConfigError: --log without a model version.
        DataError: the words name nothing, or more than one thing.
        ServiceError: --log, and MLflow is unavailable or refuses.
    """
    paths, root = params.section(PathsConfig), Path.cwd()
    with tempfile.TemporaryDirectory(prefix="align-", dir=params.section(EngineConfig).temp_directory) as folder:
        versions = DataVersions(root, Path(folder))
        known: dict[str, Models] = {}
        registered = params.section(RegisterConfig)

        def models(name: str) -> Models:
            known[name] = known.get(name) or Models(name)
            return known[name]

        runs = Runs(root, params.section(HealthConfig))

        def places() -> list[Run]:
            try:
                return runs.listed()
            except ServiceError:  # which the notes on models say
                return []

        names = Names(paths.raw, paths.shards, models, registered.model_name, places)
        subject = names.find(args.what)
        if args.log and subject.version is None:
            raise ConfigError(f"--log keeps the page of a model version, and '{args.what}' names {subject.title}")
        name = subject.version.name if subject.version else registered.model_name
        around = surroundings(params, versions, models(name))
        graph = trace(args.what, subject, around)
        graph.notes += runs.problems
        page = as_page(graph) if args.html or args.log else ""
    for note in graph.notes:
        say(f"trace: {note}")
    if args.html:
        write_text(args.html, page)
        say(f"trace: {args.html} written")
    if args.json:
        show_json(to_json(graph.as_json()))
    elif not args.log:
        show(*text_lines(graph))
    if args.log and subject.version is not None:
        log_page(around.models, subject.version, graph, page)
        show(f"{ARTIFACT} of run {subject.version.run_id}, {subject.title}")


def trace(asked: str, subject: Subject, around: Surroundings) -> Graph:
    """The chain around a subject."""
    graph = Graph(asked, subject.title)
    if subject.version is not None:
        trace_version(graph, subject.version, around)
    elif subject.run is not None:
        trace_run(graph, subject.run, around)
    elif subject.shard is not None:
        trace_shard(graph, *subject.shard, around)
    else:
        trace_pairs(graph, list(subject.rows), around)
    if around.models.problem and around.models.problem not in graph.notes:
        graph.notes.append(around.models.problem)
    return graph


def surroundings(params: Params, versions: DataVersions, models: Models) -> Surroundings:
    """What a trace in the working directory reads."""
    return Surroundings(
        root=Path.cwd(),
        paths=params.section(PathsConfig),
        rules=params.section(FilterConfig),
        register=params.section(RegisterConfig).model_copy(update={"model_name": models.name}),
        versions=versions,
        models=models,
        fetch=fetcher(params.section(StoreConfig)),
        given=params.section(StoreConfig).cache / GIVEN,
    )


def log_page(models: Models, version: Version, graph: Graph, page: str) -> None:
    """Keeps the page with the version's run, and what it shows as a tag. A new page replaces the earlier one.

    Raises:
        DataError: the version names no run.
        ServiceError: MLflow is unavailable or refuses.
    """
    if not version.run_id:
        raise DataError(f"version {version.number} names no run in MLflow, so there is no place for its page")
    with tempfile.TemporaryDirectory(prefix="align-") as folder:
        write_text(Path(folder) / ARTIFACT.name, page)
        models.log_page(version.run_id, Path(folder), ARTIFACT.parent.as_posix())
    models.page_shows(version, num_missing=len(missing(graph)))
