"""compare: what differs between runs. Parameters, code, data, main metrics with their 95 % intervals, and cost.

A run is a branch run/NAME (by its NAME), a git revision with a dvc.lock, or `.`, this checkout as it is. No server is
needed: numbers come from git and DVC's cache, and only the cost from MLflow, if it answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import EngineConfig, HealthConfig
from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.display import html
from align.display.console import say, show, show_json
from align.durable.files import to_json, write_text
from align.errors import ConfigError, DataError
from align.evaluate.compare import Measured, compare, drawing, sentence
from align.formats.query_ranks import read_ranks
from align.lineage.runs.costs import Costs, of_checkout
from align.lineage.runs.run import HERE, ComparedRun, code_changes, read_run
from align.lineage.runs.tables import as_page, letters, tables, text_lines
from align.lineage.versions.at_revision import Revisions


def main(params: Params, args: argparse.Namespace) -> None:
    """`align compare`: read the runs, compare them, print the tables.

    Raises:
        ConfigError: fewer than two runs.
        DataError: there is no such run.
    """
    if len(args.runs) == 1:
        raise ConfigError(f"align compare {args.runs[0]}: name two runs or more; `.` is this checkout")
    paths, scratch = params.section(PathsConfig), params.section(EngineConfig).temp_directory
    costs = Costs(params.section(RegisterConfig).experiment, params.section(HealthConfig))
    root = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="align-", dir=scratch) as folder:
        revisions = Revisions(root, Path(folder))
        runs = [read_run(name, root, paths, revisions) for name in args.runs]
        drawn = list(_drawn(runs, params.section(EvaluateConfig).seed)) if args.html else []
    for run in runs:
        here = of_checkout(paths.runtime, paths.reports) if run.name == HERE else {}
        known = here | (costs.of_model(run.digests["model"]) if "model" in run.digests else {})
        run.costs = {key: cost for key, cost in known.items() if key.partition("/")[0] not in run.others}
    code = [code_changes(root, runs[0], run) if number else [] for number, run in enumerate(runs)]
    parts, notes = tables(runs, code), [note for run in runs for note in run.notes]
    notes += [costs.problem] if costs.problem else []
    for note in notes:
        say(f"compare: {note}")
    if args.html:
        write_text(args.html, as_page(runs, parts, notes, drawn))
        say(f"compare: {args.html} written")
    if args.json:
        listed = [
            {key: value for key, value in dataclasses.asdict(run).items() if key != "ranks"}
            | {"code_differs_from_first": files}
            for run, files in zip(runs, code, strict=True)
        ]
        show_json(to_json({"schema_version": 1, "runs": listed}))
    else:
        show(*text_lines(runs, parts))


def _drawn(runs: Sequence[ComparedRun], seed: int) -> Iterator[str]:
    """Blocks: which is better, the first run or another, where both have the rank of each query."""
    for letter, run in list(zip(letters(runs), runs, strict=True))[1:]:
        yield html.heading(f"Which is better, A or {letter}")
        try:
            report = compare(_measured(runs[0]), _measured(run), seed=seed)
        except DataError as error:
            yield html.paragraph(f"It cannot be said query by query: {error}.")
        else:
            yield html.paragraph(sentence(report, letter)) + drawing(report, letter)


def _measured(run: ComparedRun) -> Measured:
    if run.ranks is None:
        raise DataError(f"{run.name} has no rank of each query here")
    return Measured(run.name, run.digests.get("model", ""), run.metrics, read_ranks(run.ranks))
