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
from pathlib import Path

from align.config import Params
from align.config.engine import EngineConfig
from align.config.filter import FilterConfig
from align.config.health import HealthConfig
from align.config.paths import PathsConfig
from align.config.register import RegisterConfig
from align.config.store import StoreConfig
from align.display.console import say, show, show_json
from align.durable.files import to_json, write_text
from align.errors import ConfigError, DataError
from align.lineage.runs.costs import Costs
from align.lineage.runs.run_list import RunList
from align.lineage.trace.back import trace_run, trace_shard, trace_version
from align.lineage.trace.graph import Graph, missing
from align.lineage.trace.models import Models
from align.lineage.trace.page import as_page
from align.lineage.trace.pairs import Surroundings, trace_pairs
from align.lineage.trace.source_places import SourcePlaces
from align.lineage.trace.subject import Names, Subject
from align.lineage.trace.text import text_lines
from align.lineage.versions.data_versions import DataVersions
from align.services.s3.store import fetcher
from align.services.tracking.registry import Version

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

        runs = RunList(root, paths, versions, Costs(registered.experiment, params.section(HealthConfig)))
        names = Names(paths.raw, paths.shards, models, registered.model_name, runs.places)
        subject = names.find(args.what)
        if args.log and subject.version is None:
            raise ConfigError(f"--log keeps the page of a model version, and '{args.what}' names {subject.title}")
        name = subject.version.name if subject.version else registered.model_name
        around = surroundings(params, versions, models(name), in_source=args.in_source)
        graph = trace(args.what, subject, around)
        graph.notes += [] if models(name).problem else runs.problems
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


def surroundings(params: Params, versions: DataVersions, models: Models, *, in_source: bool = False) -> Surroundings:
    """What a trace in the working directory reads; with `in_source` also a large source."""
    return Surroundings(
        root=Path.cwd(),
        paths=params.section(PathsConfig),
        rules=params.section(FilterConfig),
        register=params.section(RegisterConfig).model_copy(update={"model_name": models.name}),
        versions=versions,
        models=models,
        fetch=fetcher(params.section(StoreConfig)),
        places=SourcePlaces(params, asked=in_source),
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
