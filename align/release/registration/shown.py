"""What MLflow shows of a run's stages: few figures, curves; files, pictures and tables, side by side.

MLflow has a column and a chart for each metric, so a run has few: curves, and `headline`. The table `metrics` has all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config.release import PromoteConfig
from align.display.report import reported
from align.display.shares import percent
from align.services.tracking.registry import DATA_DIGEST, MODEL_DIGEST
from align.services.tracking.tracker import Tracker, metric_name

#: Key in MLflow -> file below reports/. Of the retrieval examples, both show the same queries in every run.
PICTURES = {
    "retrieval/text_to_image": "evaluation/same_text_to_image.png",
    "retrieval/image_to_text": "evaluation/same_image_to_text.png",
    "retrieval/recall": "evaluation/recall.png",
    "search/queries": "index/queries.png",
}

#: The keys that MLflow takes for a picture.
_KEY = re.compile(r"[A-Za-z0-9_. -]+")

#: The metrics of a run that are no curves.
MAX_HEADLINE = 8
_STEPS = "metrics.jsonl"
_WAYS = ("image_to_text", "text_to_image")

#: How the line begins in which `align register` says what a promotion would say now.
VERDICT = "verdict: "

#: The table of all metrics; the parts of one, in the order of its columns.
METRICS = "metrics"
_PARTS = ("", "/low", "/high", "/chance")

#: Columns of a table: name -> cells.
Table = dict[str, list[Any]]

#: The tags of a run that name its data, its model and what that was measured on.
DIGESTS = {"data": DATA_DIGEST, "model": MODEL_DIGEST, "evaluation": "align.evaluation_digest"}


def headline(values: Mapping[str, Any]) -> list[str]:
    """The eight figures that runs are compared by: what promotion looks at, recall on its first set, what was kept.

    Args:
        values: params.yaml, section -> key -> value; a champion is chosen by `promote.metrics`.
    """
    promoted = values.get(PromoteConfig.section, {}).get("metrics", [])
    named = [f"{name.partition('/')[0]}/{way}/recall@{k}" for name in promoted[:1] for k in (1, 10) for way in _WAYS]
    return list(dict.fromkeys([*promoted[: MAX_HEADLINE - 1 - len(named)], *named, "filter/keep_rate"]))


def pictures(reports: Sequence[Path]) -> dict[str, Path]:
    """Key -> file, of those that the stages with these reports wrote."""
    named = dict(PICTURES)
    for one in _report(reports, "evaluation").get("classes", {}):
        if _KEY.fullmatch(one):  # the others are only among the report's files
            named[f"{one}/confusion"] = f"evaluation/{one}_confusion.png"
    files = {
        key: folder.parent / name
        for key, name in named.items()
        for folder in reports
        if name.startswith(f"{folder.name}/")
    }
    return {key: file for key, file in files.items() if file.is_file()}


def log_report(tracker: Tracker, run_id: str, folder: Path, shown: Sequence[str], shards: Path | None = None) -> None:
    """Logs what a stage reported, each part once.

    Args:
        tracker: MLflow.
        run_id: of the run.
        folder: the stage's report.
        shown: the metrics that become MLflow's, see `headline`; where a set of one's own has none, its main ones do.
        shards: data/shards, which the run used; None: it made none.
    """
    metrics = reported(folder, "metrics.json")
    if (curves := folder / _STEPS).is_file():
        rows = [json.loads(line) for line in curves.read_text("utf-8").splitlines() if line]
        tracker.log_series(run_id, rows, prefix=f"{folder.name}/")
    chosen = {name: metrics[name] for name in shown if name in metrics}
    if not chosen and folder.name == "evaluation":
        main = [f"{row[0]}/{row[1]}" for row in measured(metrics) if row[1].endswith(("recall@1", "accuracy"))]
        chosen = {name: metrics[name] for name in main[:MAX_HEADLINE]}
    tracker.log_metrics(run_id, chosen)
    tracker.log_folder(run_id, folder, f"reports/{folder.name}")
    if digests := digests_of([folder]):
        tracker.set_tags(run_id, {DIGESTS[what]: digest for what, digest in digests.items()})
    if shards is not None and (data := _report([folder], "shard")):
        tracker.log_dataset(run_id, "shards", data["digest"], shards.as_posix())
    if made := pictures([folder]):
        tracker.log_pictures(run_id, made)


def tables(reports: Sequence[Path]) -> dict[str, Table]:
    """Name -> table, of those that have rows: `metrics`, `classes` and `funnel`.

    Side by side, MLflow makes a row of each value of the first column and shows the second one of each run.

    Args:
        reports: the folders with the stages' reports.
    """
    metrics, classes = metrics_of(reports), _report(reports, "evaluation").get("classes", {})
    funnel = _report(reports, "filter").get("funnel", [])
    rows = [(f"{name}/{metric}", _said(*numbers), *numbers) for name, metric, *numbers in measured(metrics)]
    parts = {name + part for name, *_ in rows for part in _PARTS}
    others = [(name, value, value, None, None, None) for name, value in metrics.items() if name not in parts]
    found = {
        METRICS: _columns(("measure", "with interval", "value", "low", "high", "chance"), [*rows, *others]),
        "classes": _columns(
            ("class", "accuracy", "images"),
            [
                (f"{name}/{label}", row["accuracy"], row["num_images"])
                for name, rows in classes.items()
                for label, row in rows.items()
            ],
        ),
        "funnel": _columns(
            ("reason", "pairs left", "dropped by it first", "dropped by it alone"),
            [(row["reason"], row["num_remaining"], row["num_first"], row["num_alone"]) for row in funnel],
        ),
    }
    return {name: table for name, table in found.items() if any(table.values())}


def all_metrics(tracker: Tracker, run_id: str) -> dict[str, float]:
    """All metrics of a run under MLflow's names: those that MLflow has, and those of its table."""
    return dict(tracker.run(run_id).metrics) | {
        metric_name(name): value for name, value in table_metrics(tracker, run_id).items()
    }


def table_metrics(tracker: Tracker, run_id: str) -> dict[str, float]:
    """The metrics in a run's table, by the flat names of the reports; none if it has no table yet."""
    return {
        name + part: value
        for name, _, *numbers in tracker.table(run_id, METRICS)
        for part, value in zip(_PARTS, numbers, strict=True)
        if value is not None
    }


def digests_of(reports: Sequence[Path]) -> dict[str, str]:
    """`data`, `model` and `evaluation` -> digest, as far as the stages with these reports made them."""
    found = {
        "data": _report(reports, "shard").get("digest"),
        "model": _report(reports, "package").get("digest"),
        "evaluation": _report(reports, "evaluation").get("evaluation_digest"),
    }
    return {what: str(digest) for what, digest in found.items() if digest}


def metrics_of(reports: Iterable[Path]) -> dict[str, float]:
    """The metrics of all stages with these folders of reports."""
    return {name: value for folder in reports for name, value in reported(folder, "metrics.json").items()}


def measured(metrics: Mapping[str, float], ending: str = "") -> list[tuple[Any, ...]]:
    """(set, metric, value, low, high, chance) of the metrics that have an interval and end so."""
    rows = []
    for key in sorted(metrics):
        if f"{key}/low" in metrics and f"{key}/high" in metrics and key.partition("/")[2].endswith(ending):
            name, _, metric = key.partition("/")
            chance = metrics.get(f"{key}/chance")
            rows.append((name, metric, metrics[key], metrics[f"{key}/low"], metrics[f"{key}/high"], chance))
    return rows


def _said(value: float, low: float, high: float, chance: float | None) -> str:
    """A cell that people can compare without the columns beside it."""
    by_chance = "" if chance is None else f", by chance {percent(chance)}"
    return f"{percent(value)} ({percent(low)} to {percent(high)}){by_chance}"


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Table:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _report(reports: Sequence[Path], name: str) -> dict[str, Any]:
    """What a stage reported; empty if it is not among these."""
    return next((reported(folder) for folder in reports if folder.name == name), {})
