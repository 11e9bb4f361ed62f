"""What `align gc` asks of MLflow: all versions of all models, the runs of an experiment, and their removal.

`mlflow gc` is not used: it also ends every experiment and model that people have put into MLflow's trash. A run that is
removed here goes into that trash, with a tag that says so, and its files are deleted if they lie beside the database of
this checkout. Files on a server are freed by `mlflow gc` there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from align.services.tracking.database import ARTIFACTS
from align.services.tracking.reader import StoredRuns
from align.services.tracking.registry import Version
from align.services.tracking.tracked_run import TrackedRun, tracked_run
from align.services.tracking.tracker import Tracker

#: Of a run that was removed here.
REMOVED = "align.removed_by"
#: MLflow's number for runs in its trash and others alike.
_ALL_RUNS = 3
_PAGE = 1000


@dataclass(frozen=True)
class LoggedRun:
    """A run of MLflow.

    Attributes:
        run_id: its id.
        name: for people.
        status: RUNNING, FINISHED, FAILED, ...
        last_used: when it ended, or else started: seconds since 1970.
        tags: its tags.
        metrics: names of its metrics.
        artifacts: the folder of its files, if it is below the given one; else None.
        removed: it is in MLflow's trash.
    """

    run_id: str
    name: str
    status: str
    last_used: float
    tags: Mapping[str, str]
    metrics: tuple[str, ...]
    artifacts: Path | None
    removed: bool


def all_versions(tracker: Tracker | StoredRuns) -> list[Version]:
    """The versions of every registered model."""
    if isinstance(tracker, StoredRuns):
        return tracker.registry.versions()
    with tracker._asking():
        models = list(_pages(tracker._client.search_registered_models))
    return [version for model in models for version in tracker.registry.versions(model.name)]


def logged_runs(tracker: Tracker | StoredRuns, experiment: str, root: Path) -> list[LoggedRun]:
    """Every run of an experiment, those in the trash among them; none without such an experiment.

    Args:
        tracker: MLflow.
        experiment: its name.
        root: the folder whose `mlartifacts/` may hold their files.
    """
    files = root.resolve() / ARTIFACTS
    if isinstance(tracker, StoredRuns):
        return [_logged(*each, files) for each in tracker.every_run(experiment)]
    with tracker._asking():
        found = tracker._client.get_experiment_by_name(experiment)
        if found is None:
            return []
        runs = list(_pages(tracker._client.search_runs, [found.experiment_id], run_view_type=_ALL_RUNS))
    return [
        _logged(
            tracked_run(run), run.info.artifact_uri or "", tuple(run.data.metrics),
            run.info.lifecycle_stage == "deleted", files,
        )
        for run in runs
    ]  # fmt: skip


def trash(tracker: Tracker | StoredRuns, run_id: str) -> None:
    """Puts a run into MLflow's trash, with a tag that says who did."""
    tracker = tracker.tracker if isinstance(tracker, StoredRuns) else tracker
    tracker.set_tags(run_id, {REMOVED: "align gc"})
    with tracker._asking():
        tracker._client.delete_run(run_id)


def _logged(run: TrackedRun, address: str, metrics: tuple[str, ...], removed: bool, folder: Path) -> LoggedRun:
    parts = urlsplit(address)
    path = Path(unquote(parts.path)) if parts.scheme in ("", "file") and not parts.netloc else None
    if path is not None and not (path.resolve().is_relative_to(folder) and path.resolve().parent != folder):
        path = None
    return LoggedRun(
        run_id=run.run_id,
        name=run.name or run.run_id,
        status=run.status,
        last_used=run.ended_at or run.started_at,
        tags=run.tags,
        metrics=metrics,
        artifacts=path.parent if path is not None else None,
        removed=removed,
    )


def _pages(search: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    page: str | None = None
    while page is None or page:
        answer = search(*args, max_results=_PAGE, page_token=page, **kwargs)
        yield from answer
        page = answer.token or ""
