"""trace: the chain of everything, both ways: page, pair, decision, gate, shards, run, version, alias, index.

    align trace align@champion           from the champion back to the web pages
    align trace 000000012                from a pair to the champion; also a URL, or a picture's sha256
    align trace demo                     a run: branch run/demo, an MLflow run id, a Prefect flow run

The answer is a list of sections in the order of the chain. Data, reports and models of another version are read at the
git revision that the version names. It only reads. A link that is not on this machine says why, and what brings it;
without MLflow the half of the data is shown. `align register` keeps the page with the run of each new version.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from align.config import Params
from align.config.filter import FilterConfig
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.display.console import say, show, show_json
from align.durable.files import to_json, write_text
from align.errors import DataError
from align.formats.shards import GIVEN, MANIFEST
from align.lineage.trace.data import Data, given_data, unknown_data
from align.lineage.trace.models import index_section, run_section, version_sections
from align.lineage.trace.pairs import Surroundings, trace_pairs
from align.lineage.trace.sections import Section, Trace
from align.lineage.trace.show import as_page, text_lines
from align.lineage.trace.subject import Names, Run, Subject, of_version
from align.lineage.versions.at_revision import Revisions, digest_of
from align.lineage.versions.registered import TRAINED_ON, Registered, revisions_of
from align.lineage.versions.who_saw import training_data
from align.services.s3.store import fetcher
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST, Version
from align.services.tracking.tracker import REVISION, Tracker

#: The page as an artifact of the version's run in MLflow.
ARTIFACT = "lineage/lineage.html"


def trace_version(trace: Trace, version: Version, around: Surroundings) -> None:
    """From a version back to the pages of all data that trained it."""
    data = training_data(version.tags)
    for digest in data.digests:
        trace.add(*_of_digest(digest, around, data.not_gated, revisions_of(version)))
    trace.add(*version_sections(around.registered, version, around.root, asked=True))
    trained = f"{len(data.trained_on)} version{'s' if len(data.trained_on) > 1 else ''} of the data"
    trace.answers.append(f"trained on {trained}" if data.trained_on else "no data that is known trained it")
    trace.answers += data.gaps
    _index_of(trace, [version], around)


def trace_run(trace: Trace, run: Run, around: Surroundings) -> None:
    """From a run back to its data, and on to the versions that it registered."""
    tags, paths = dict(run.tracked.tags) if run.tracked else {}, around.paths
    run_id = run.tracked.run_id if run.tracked else ""
    try:
        files = around.revisions.at(run.commit) if run.commit else None
    except DataError as error:
        files = None
        trace.notes.append(str(error))
    recorded = digest_of(files.folder(paths.shards, MANIFEST)) if files else None
    digest = tags.get(DATA_DIGEST) or recorded or ""
    model = tags.get(MODEL_DIGEST)
    data = training_data({DATA_DIGEST: digest, TRAINED_ON: digest, **tags})
    for each in data.digests:
        trace.add(*_of_digest(each, around, data.not_gated, [run.commit] if run.commit else []))
    if not any(data.digests):
        trace.notes.append("no data of it is recorded")
    versions = [
        one for one in around.registered.versions
        if (run_id and one.run_id == run_id) or (model and one.tags.get(MODEL_DIGEST) == model)
    ]  # fmt: skip
    if run.commit:
        tags.setdefault(REVISION, run.commit)
    trace.add(run_section(around.registered, run_id, tags, around.root, run.branch, asked=True))
    for one in versions:
        sections = version_sections(around.registered, one, around.root)
        trace.add(*(section for section in sections if section.kind != "run" or one.run_id != run_id))
        trace.answers.append(f"its model is {one.name} version {one.number}")
    if not versions and not around.registered.problem:
        trace.answers.append("no registered version has its model")
    _index_of(trace, versions, around)


def _of_digest(
    digest: str, around: Surroundings, not_gated: Sequence[str], revisions: Iterable[str]
) -> Iterator[Section]:
    """The data half of one digest; one section that says so where it is not here."""
    if not digest:
        return
    if digest in not_gated:
        yield given_data(digest, around.given)
        return
    files = around.revisions.find(digest, around.paths.shards, [*revisions, *around.registered.revisions(digest)])
    yield from Data(files, around.paths).sections() if files else [unknown_data(digest)]


def _index_of(trace: Trace, versions: Sequence[Version], around: Surroundings) -> None:
    """The checkout's index, as a section where one of these versions was registered with it."""
    found = index_section(around.registered, around.paths.index) if versions else None
    if found is not None:
        section, maker = found
        trace.answers.append(
            f"the index in {around.paths.index.as_posix()} was made by {dict(section.facts)['made by']}"
        )
        if maker in versions:
            trace.add(section)


def trace_of(asked: str, subject: Subject, around: Surroundings) -> Trace:
    """The chain around a subject."""
    trace = Trace(asked, subject.title)
    if subject.version is not None:
        trace_version(trace, subject.version, around)
    elif subject.run is not None:
        trace_run(trace, subject.run, around)
    else:
        trace_pairs(trace, list(subject.rows), around)
    if around.registered.problem:
        trace.notes.append(around.registered.problem)
    return trace


def main(params: Params, args: argparse.Namespace) -> None:
    """`align trace`.

    Raises:
        DataError: the words name nothing, or more than one thing.
    """
    paths, root, config = params.section(PathsConfig), Path.cwd(), params.section(RegisterConfig)
    registered = cache(lambda name: Registered(name, config.experiment))
    subject = Names(root, paths.raw, registered, config.model_name).find(args.what)
    known = registered(subject.version.name if subject.version else config.model_name)
    with tempfile.TemporaryDirectory(prefix="align-", dir=params.section(EngineConfig).temp_directory) as folder:
        trace = trace_of(args.what, subject, _surroundings(params, Path(folder), known))
    for note in trace.notes:
        say(f"trace: {note}")
    if args.html:
        write_text(args.html, as_page(trace))
        say(f"trace: {args.html} written")
    if args.json:
        show_json(to_json(trace.as_json()))
    else:
        show(*text_lines(trace))


def log_page(params: Params, version: Version) -> None:
    """Keeps the page of a new version with its run in MLflow.

    Raises:
        AlignError: it cannot be drawn, or MLflow refuses.
    """
    known = Registered(version.name, params.section(RegisterConfig).experiment)
    with tempfile.TemporaryDirectory(prefix="align-", dir=params.section(EngineConfig).temp_directory) as folder:
        around = _surroundings(params, Path(folder), known)
        trace = trace_of(f"{version.name}/{version.number}", of_version(version), around)
    Tracker().log_text(version.run_id, as_page(trace), ARTIFACT)


def _surroundings(params: Params, scratch: Path, registered: Registered) -> Surroundings:
    """What a trace in the working directory reads."""
    root, store = Path.cwd(), params.section(StoreConfig)
    return Surroundings(
        root, params.section(PathsConfig), params.section(FilterConfig), Revisions(root, scratch), registered,
        fetcher(store), store.cache / GIVEN,
    )  # fmt: skip
