"""A run as MLflow has recorded it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """A run of MLflow.

    Attributes:
        run_id: its id.
        experiment_id: of its experiment.
        name: for people.
        status: RUNNING, FINISHED, FAILED or KILLED.
        started_at: seconds since 1970; the same for `ended_at`, None while it has not ended.
        tags: all.
        params: all, as MLflow shows them.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    started_at: float
    ended_at: float | None
    tags: Mapping[str, str]
    params: Mapping[str, str]


def tracked_run(entity: Any) -> TrackedRun:
    """From what MLflow's client returns."""
    info = entity.info
    end = info.end_time and info.end_time / 1000
    start = (info.start_time or 0) / 1000
    data = entity.data
    return TrackedRun(
        info.run_id, info.experiment_id, info.run_name, info.status, start, end, dict(data.tags), dict(data.params)
    )
