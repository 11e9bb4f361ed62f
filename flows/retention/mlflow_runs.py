"""Runs of MLflow that no registered version, no kept revision and nobody at work needs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from align.services.tracking.reader import StoredRuns
from align.services.tracking.registry import Version
from align.services.tracking.tracker import PARENT, Tracker
from align.services.tracking_retention import REMOVED, LoggedRun, logged_runs, trash
from flows.retention.item import Item, size_of

#: What only our runs have: tags of `align register`, or metrics of a training that logs while it runs.
_TAGS, _METRICS = "align.", ("pretrain/", "finetune/")
REVISION = "align.git_revision"


def old_runs(
    tracker: Tracker | StoredRuns, experiment: str, root: Path, *, versions: Collection[Version],
    commits: Collection[str], before: float,
) -> Iterator[Item]:  # fmt: skip
    """Runs of the experiment that ended before a time, and files of those that an interrupted removal left.

    Args:
        tracker: MLflow.
        experiment: its name.
        root: the checkout, beside whose database files of runs may lie.
        versions: all registered ones: their runs stay, and the evaluations that are children of these.
        commits: the runs of these stay.
        before: seconds since 1970.
    """
    registered = {version.run_id for version in versions}
    for run in logged_runs(tracker, experiment, root):
        if run.removed:
            if REMOVED in run.tags and run.artifacts is not None and run.artifacts.is_dir():
                yield _item(run, partial(shutil.rmtree, run.artifacts, ignore_errors=True))
        elif (
            _is_ours(run)
            and run.status != "RUNNING"
            and not {run.run_id, run.tags.get(PARENT)} & registered
            and run.tags.get(REVISION, "").removesuffix("-dirty") not in commits
            and run.last_used < before
        ):
            yield _item(run, partial(_remove, tracker, run))


def _is_ours(run: LoggedRun) -> bool:
    return any(tag.startswith(_TAGS) for tag in run.tags) or any(name.startswith(_METRICS) for name in run.metrics)


def _item(run: LoggedRun, remove: partial[None]) -> Item:
    size = size_of(run.artifacts) if run.artifacts is not None else 0
    return Item("runs of MLflow", (f"{run.name} ({run.run_id[:8]})",), size, remove)


def _remove(tracker: Tracker | StoredRuns, run: LoggedRun) -> None:
    trash(tracker, run.run_id)
    if run.artifacts is not None:
        shutil.rmtree(run.artifacts, ignore_errors=True)
