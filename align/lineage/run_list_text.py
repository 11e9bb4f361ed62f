"""The runs side by side, as text for a terminal of 100 columns and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from align.lineage.compare_tables import costs_table, letters, metrics_table, params_table
from align.lineage.compare_text import table_lines
from align.lineage.run_list import ListedRun

_MAX_NAME = 40


def list_lines(runs: Sequence[ListedRun]) -> Iterator[str]:
    """Each run in a line, then what differs in parameters, main metrics, cost; then why runs failed, and links."""
    shown = [run.numbers for run in runs]
    width = min(_MAX_NAME, max(len(run.place.name) for run in runs))
    for letter, run in zip(letters(shown), runs, strict=True):
        name = f"{_cut(run.place.name, width):<{width}}"
        yield f"{letter:<2} {name}  {run.place.state:<8}  {_time(run)}  {_where(run)}"
    yield from table_lines([params_table(shown), metrics_table(shown), costs_table(shown)])
    for title, texts in (
        ("Why they did not finish", [run.place.why for run in runs]),
        ("Links", ["  ".join(run.links.values()) for run in runs]),
    ):
        lines = [f"  {letter}  {text}" for letter, text in zip(letters(shown), texts, strict=True) if text]
        yield from ("", title, *lines) if lines else ()


def one_lines(run: ListedRun) -> Iterator[str]:
    """All that is known of one run."""
    place = run.place
    rows = {
        "run": place.name,
        "state": place.state,
        "why": place.why,
        "time": _time(run),
        "branch": place.branch and f"run/{place.branch}",
        "commit": place.commit,
        "made from": run.numbers.made_from or "",
        "folder": place.path,
        "Prefect": run.links.get("prefect") or place.flow_run,
        "MLflow": run.links.get("mlflow") or (place.tracked.run_id if place.tracked else ""),
        "data": run.numbers.digests.get("data", ""),
        "model": run.numbers.digests.get("model", ""),
    }
    for label, value in rows.items():
        if value:
            yield f"{label:<10} {value}"
    yield from table_lines([metrics_table([run.numbers]), costs_table([run.numbers])])
    if place.branch:
        yield from ("", f"its data, model and reports: rm -f dvc.lock && git switch run/{place.branch} && dvc checkout")


def as_json(runs: Sequence[ListedRun]) -> dict[str, Any]:
    """For programs: the same keys for every run, with null where nothing is known."""
    return {
        "schema_version": 1,
        "params_that_differ": [name for name, _ in params_table([run.numbers for run in runs]).rows],
        "runs": [_as_json(run) for run in runs],
    }


def _as_json(run: ListedRun) -> dict[str, Any]:
    place, numbers = run.place, run.numbers
    return {
        "name": place.name,
        "state": place.state,
        "time": _time(run),
        "branch": (place.branch and f"run/{place.branch}") or None,
        "commit": place.commit or None,
        "made_from": numbers.made_from,
        "folder": place.path or None,
        "why": place.why or None,
        "flow_run": place.flow_run or None,
        "mlflow_run": place.tracked.run_id if place.tracked else None,
        "links": dict(run.links),
        "params": dict(numbers.params),
        "metrics": {name: dataclasses.asdict(value) for name, value in numbers.measured().items()},
        "costs": dict(numbers.costs),
        "digests": dict(numbers.digests),
        "notes": list(numbers.notes),
    }


def _where(run: ListedRun) -> str:
    return f"run/{run.place.branch}" if run.place.branch else run.place.path or "MLflow only"


def _time(run: ListedRun) -> str:
    return datetime.fromtimestamp(run.place.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
