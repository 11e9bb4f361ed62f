"""compare: what differs between runs. Parameters, code, data, main metrics with their 95 % intervals, and cost.

A run is one that MLflow has (by its name or id), or `.`, this checkout as it is. Which is better comes first, query by
query where both kept the rank of each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap

from align.config import Params
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import EngineConfig, HealthConfig
from align.config.paths import PathsConfig
from align.display import html
from align.display.console import say, show, show_json
from align.durable.files import to_json, write_text
from align.errors import ConfigError, DataError
from align.evaluate.compare import CompareReport, Measured, compare, drawing, sentence
from align.formats.query_ranks import RANKS, read_ranks
from align.lineage.runs.listing import Runs, as_json
from align.lineage.runs.run import HERE, Run, checkout_as_run
from align.lineage.runs.tables import WIDTH, as_page, letters, tables, text_lines
from align.services.git import git_if_any

#: What is compared as code, where a repository has it.
CODE = ("align", "flows", "dvc.yaml", "code.yaml")


def main(params: Params, args: argparse.Namespace) -> None:
    """`align compare`: read the runs, compare them, print the tables.

    Raises:
        ConfigError: fewer than two runs.
        DataError: there is no such run.
        ServiceError: MLflow is unavailable.
    """
    if len(args.runs) == 1:
        raise ConfigError(f"align compare {args.runs[0]}: name two runs or more; `.` is this checkout")
    root, known = Path.cwd(), Runs(Path.cwd(), params.section(HealthConfig))
    runs = [
        checkout_as_run(root, params) if name == HERE else known.measured(known.named(name)[:1])[0]
        for name in args.runs
    ]
    code = [code_changes(root, runs[0], run) if number else [] for number, run in enumerate(runs)]
    parts = tables(runs, code)
    for note in known.problems:
        say(f"compare: {note}")
    with tempfile.TemporaryDirectory(prefix="align-", dir=params.section(EngineConfig).temp_directory) as scratch:
        ranks = [_ranks(run, known, params, Path(scratch, str(number))) for number, run in enumerate(runs)]
        said = list(_said(runs, ranks, params.section(EvaluateConfig).seed))
    if args.html:
        drawn = [
            html.heading(f"Which is better, A or {letter}") + html.paragraph(one) + (drawing(of, letter) if of else "")
            for letter, one, of in said
        ]
        write_text(args.html, as_page(runs, parts, drawn))
        say(f"compare: {args.html} written")
    if args.json:
        listed = [as_json(run, {}) | {"code_differs_from_first": files} for run, files in zip(runs, code, strict=True)]
        show_json(to_json({"schema_version": 1, "which_is_better": [one for _, one, _ in said], "runs": listed}))
    else:
        show(*(line for _, one, _ in said for line in wrap(one, WIDTH)), *text_lines(runs, parts))


def code_changes(root: Path, one: Run, other: Run) -> list[str] | None:
    """The files of the code that differ between two runs; of the checkout, as its tracked files are now.

    None: git does not have both commits here.
    """
    commits = [run.commit for run in (one, other) if run.name != HERE] or [one.commit]
    changed = git_if_any(root, "diff", "--name-only", "--no-renames", *commits, "--", *CODE) if all(commits) else None
    return None if changed is None else changed.splitlines()


def _ranks(run: Run, known: Runs, params: Params, folder: Path) -> Path | None:
    if run.name == HERE:
        return params.section(PathsConfig).reports / "evaluation" / RANKS
    folder.mkdir()
    return known.tracker.artifact(run.run_id, f"reports/evaluation/{RANKS}", folder)


def _said(
    runs: Sequence[Run], ranks: Sequence[Path | None], seed: int
) -> Iterator[tuple[str, str, CompareReport | None]]:
    """A letter of another run than the first, which of both is better, and by what, if both have ranks of queries."""
    for number, letter in list(enumerate(letters(runs)))[1:]:
        try:
            report = compare(_measured(runs[0], ranks[0]), _measured(runs[number], ranks[number]), seed=seed)
        except DataError as error:
            yield letter, f"Which is better, A or {letter}, cannot be said query by query: {error}.", None
        else:
            yield letter, sentence(report, letter), report


def _measured(run: Run, ranks: Path | None) -> Measured:
    if ranks is None or not ranks.is_file():
        raise DataError(f"{run.name} has no rank of each query here")
    return Measured(run.name, run.digests.get("model", ""), run.metrics, read_ranks(ranks))
