"""Pictures under fixed keys, and tables, which MLflow shows side by side for several runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config.release import PromoteConfig
from align.services.tracking.tracker import Tracker

#: Key in MLflow -> file below reports/. Of the retrieval examples, both show the same queries in every run.
PICTURES = {
    "retrieval/text_to_image": "evaluation/same_text_to_image.png",
    "retrieval/image_to_text": "evaluation/same_image_to_text.png",
    "retrieval/recall": "evaluation/recall.png",
    "search/queries": "index/queries.png",
}

#: For each set of classes: key in MLflow, with SET -> file below reports/.
_PICTURES_OF_SET = {
    "{}/confusion": "evaluation/{}_confusion.png",
    "{}/calibration": "evaluation/{}_calibration.png",
    "{}/fine_tuning": "evaluation/{}_fine_tuning.png",
}

#: The keys that MLflow takes for a picture.
_KEY = re.compile(r"[A-Za-z0-9_. -]+")

#: Parameters that the list of runs has columns for.
_COLUMNS = ("pretrain.seed", "pretrain.num_steps", "pretrain.batch_size", "pretrain.learning_rate")

#: Columns of a table: name -> cells.
Table = dict[str, list[Any]]


def view(values: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[str], Sequence[str]]:
    """The metrics and the parameters that the list of runs has columns for, and the keys of the pictures in it.

    Args:
        values: params.yaml, section -> key -> value; a champion is chosen by `promote.metrics`.
    """
    return values.get(PromoteConfig.section, {}).get("metrics", []), _COLUMNS, tuple(PICTURES)


def pictures(reports: Path) -> dict[str, Path]:
    """Key -> file, of those that the stages wrote."""
    named = dict(PICTURES)
    for one in _report(reports / "evaluation").get("classes", {}):
        if _KEY.fullmatch(one):  # the others are only among the report's files
            named |= {key.format(one): name.format(one) for key, name in _PICTURES_OF_SET.items()}
    return {key: reports / name for key, name in named.items() if (reports / name).is_file()}


def log_shown(tracker: Tracker, run_id: str, metrics: Mapping[str, float], reports: Path) -> None:
    """Logs pictures and tables, each once: of a run of the pipeline, and of an evaluation apart from it."""
    tracker.log_pictures(run_id, pictures(reports))
    tracker.log_tables(run_id, tables(metrics, reports))


def tables(metrics: Mapping[str, float], reports: Path) -> dict[str, Table]:
    """Name -> table, of those that have rows: `recall`, `classes` and `funnel`.

    Side by side, MLflow makes a row of each value of the first column and shows the second one of each run.

    Args:
        metrics: of all stages; those with an interval are rows of `recall`.
        reports: the folder of the stages' reports.
    """
    classes = _report(reports / "evaluation").get("classes", {})
    funnel = _report(reports / "filter").get("funnel", [])
    found = {
        "recall": _columns(
            ("measure", "with interval", "value", "low", "high", "chance"),
            [(f"{name}/{metric}", _said(*numbers), *numbers) for name, metric, *numbers in _measured(metrics)],
        ),
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


def _measured(metrics: Mapping[str, float]) -> list[tuple[Any, ...]]:
    """(set, metric, value, low, high, chance) of each metric that has an interval."""
    rows = []
    for key in sorted(metrics):
        if f"{key}/low" in metrics and f"{key}/high" in metrics:
            name, _, metric = key.partition("/")
            chance = metrics.get(f"{key}/chance")
            rows.append((name, metric, metrics[key], metrics[f"{key}/low"], metrics[f"{key}/high"], chance))
    return rows


def _said(value: float, low: float, high: float, chance: float | None) -> str:
    """A cell that people can compare without the columns beside it."""
    by_chance = "" if chance is None else f", by chance {chance:.1%}"
    return f"{value:.1%} ({low:.1%} to {high:.1%}){by_chance}"


def measured(metrics: Mapping[str, float], ending: str) -> list[tuple[Any, ...]]:
    """(set, metric, value, low, high, chance) of the metrics that have an interval and end so."""
    return [row for row in _measured(metrics) if row[1].endswith(ending)]


def _columns(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Table:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
    return found
