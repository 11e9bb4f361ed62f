"""A run as MLflow has recorded it, and the addresses of its pages.

MLflow's first page would show traces of language models, and this project has none: `workflowType` chooses the other.
"""

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
        metrics: the latest value of each, under MLflow's names.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    started_at: float
    ended_at: float | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def tracked_run(entity: Any) -> TrackedRun:
    """From what MLflow's client returns."""
    info = entity.info
    end = info.end_time and info.end_time / 1000
    start = (info.start_time or 0) / 1000
    data = entity.data
    return TrackedRun(
        info.run_id, info.experiment_id, info.run_name, info.status, start, end, dict(data.tags), dict(data.params),
        dict(data.metrics),
    )  # fmt: skip


#: The part of an address that opens MLflow's pages for training, not those for language models.
TRAINING = "workflowType=machine_learning"


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def runs_address(server: str, experiment_id: str) -> str:
    """The address of the list of an experiment's runs."""
    return f"{server}/#/experiments/{experiment_id}/runs?{TRAINING}"
