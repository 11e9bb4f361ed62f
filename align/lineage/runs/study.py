"""What the runs of a study found: a figure of each run, the arms against the base, a page of one table and one plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from align.config.study import Cell, Study
from align.display import html
from align.display.figure import BAD, GOOD, SOFT, Interval, forest
from align.durable.files import to_json, write_text
from align.release.registration.shown import table_metrics
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import Tracker
from align.statistics.dunnett import Comparison, Difference, against_base
from align.statistics.paired import set_of

#: The head of `rows`.
COLUMNS = ("arm", "runs", "primary, %", "minus base, points", "95 %, all arms", "verdict", "beside the paper", "paper")
_COLOURS = {"better": GOOD, "worse": BAD}


@dataclass(frozen=True)
class Found:
    """What is known of a study.

    Attributes:
        runs: the names of its runs that have ended, and their metrics.
        missing: why there is no figure of a run.
        figures: the primary figure of each run.
        comparison: of the arms with the base.
    """

    runs: Mapping[Cell, tuple[str, Mapping[str, float]]]
    missing: Mapping[Cell, str]
    figures: Mapping[Cell, float]
    comparison: Comparison


def run_of(tracker: Tracker, tags: Mapping[str, str]) -> TrackedRun | None:
    """The newest finished run with these tags."""
    conditions = [f"tags.`{key}` = '{value}'" for key, value in tags.items()]
    return next(iter(tracker.runs(" and ".join([*conditions, "attributes.status = 'FINISHED'"]))), None)


def read_runs(study: Study, runs: Mapping[Cell, TrackedRun], missing: Mapping[Cell, str], tracker: Tracker) -> Found:
    """Reads the runs that have ended, from MLflow.

    A run that lacks a primary metric, or measured it on other items than the base, has no figure.

    Args:
        study: the study.
        runs: those that have ended.
        missing: why there is no run.
        tracker: MLflow, which has them.

    Raises:
        ServiceError: MLflow is unavailable.
    """
    missing, figures = dict(missing), dict[Cell, float]()
    found: dict[Cell, tuple[str, Mapping[str, float]]] = {}
    first: dict[str, str] | None = None
    for cell in [(arm.name, seed) for arm in study.arms for seed in study.seeds if (arm.name, seed) in runs]:
        metrics, sets = table_metrics(tracker, runs[cell].run_id), _sets(tracker, runs[cell].run_id)
        found[cell] = runs[cell].name, metrics
        first = sets if first is None else first
        measured = [set_of(metric) for metric in study.primary]
        if absent := [metric for metric in study.primary if metric not in metrics]:
            missing[cell] = f"its evaluation has no {absent[0]}"
        elif other := [name for name in measured if sets.get(name) != first.get(name)]:
            missing[cell] = f"its set {other[0]} has other items than that of {study.arms[0].name}"
        else:
            figures[cell] = mean(metrics[metric] for metric in study.primary)
    return Found(found, missing, figures, against_base(figures, study.arms[0].name))


def _sets(tracker: Tracker, run_id: str) -> dict[str, str]:
    """The sets that a run was measured on, by its evaluation's report: name -> digest."""
    with TemporaryDirectory(prefix="align-") as folder:
        file = tracker.artifact(run_id, "reports/evaluation/report.json", Path(folder))
        return (
            {name: one["digest"] for name, one in json.loads(file.read_bytes()).get("sets", {}).items()} if file else {}
        )


def rows(study: Study, found: Found) -> Iterator[tuple[str, ...]]:
    """The table, under COLUMNS: a row for each arm."""
    for arm in study.arms:
        number = sum((arm.name, seed) in found.figures for seed in study.seeds)
        value, one = found.comparison.means.get(arm.name), found.comparison.differences.get(arm.name)
        minus = f"{100 * one.value:+.1f}" if one else ""
        interval = f"{100 * one.low:+.1f} to {100 * one.high:+.1f}" if one and one.verdict else ""
        verdict, beside = one.verdict if one else "", ""
        if verdict and arm.expected:
            opposed = "as in the paper" if verdict == arm.expected else "against the paper"
            beside = verdict if verdict == "not told apart" else opposed
        shown = "-" if value is None else f"{100 * value:.1f}"
        yield arm.name, f"{number}/{len(study.seeds)}", shown, minus, interval, verdict, beside, arm.paper


def notes(study: Study, found: Found) -> Iterator[str]:
    """Sentences under the table: what the figure is, how much equal runs differ, which runs are missing."""
    how = found.comparison
    yield f"The primary figure, named before any run: the mean of {' and '.join(study.primary)}."
    if how.freedom:
        yield (
            f"Model: arm + seed; a run deviates by {100 * how.deviation:.2f} points ({how.freedom} degrees of "
            f"freedom); Dunnett's critical value is {how.critical:.2f}. An interval that holds 0 does not tell its arm "
            f"from {study.arms[0].name}."
        )
    else:
        yield "There is no verdict: it takes two seeds or more to tell how much equal runs differ."
    for (arm, seed), why in found.missing.items():
        yield f"Without {arm}, seed {seed}: {why}"


def page(study: Study, found: Found) -> str:
    """One page: the question, the plot, the table, the notes."""
    base = study.arms[0].name
    known = {base: Difference(0.0, 0.0, 0.0, "")} | found.comparison.differences
    lines = [
        Interval(arm.name, one.value, one.low, one.high, _COLOURS.get(one.verdict, SOFT))
        for arm in study.arms
        if (one := known.get(arm.name))
    ]
    figure = forest([("", lines)], about=f"arm minus {base}")
    plot = html.plot(figure, alt=f"each arm minus {base}, with its 95 % interval")
    blocks = [plot, html.table(COLUMNS, rows(study, found)), *map(html.note, notes(study, found))]
    return html.page(f"Study: {study.name}", study.question, blocks)


def write(study: Study, found: Found, folder: Path) -> None:
    """Writes `report.html` and, for programs, `report.json`."""
    runs = [
        {"arm": arm, "seed": seed, "run": name, "figure": found.figures.get((arm, seed)), "metrics": dict(metrics)}
        for (arm, seed), (name, metrics) in found.runs.items()
    ]
    write_text(folder / "report.html", page(study, found))
    values = {"schema_version": 1, "study": study.model_dump(mode="json"), "runs": runs}
    write_text(folder / "report.json", to_json(values | asdict(found.comparison)))
