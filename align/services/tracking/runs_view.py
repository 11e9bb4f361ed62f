"""A run as MLflow has recorded it, and how MLflow's list of runs opens.

The list is a view saved under a name, with the columns that tell runs of this project apart.
MLflow keeps a saved view as a tag of the experiment; an address with its key opens the list that way. Its first page
would show traces of language models, and this project has none: `workflowType` chooses the other page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


#: The view's key in an address.
KEY = "align"
#: The part of an address that opens MLflow's pages for training, not those for language models.
TRAINING = "workflowType=machine_learning"
_TAG = f"mlflow.sharedViewState.{KEY}"
#: The same at each save: MLflow shows it, and an equal view must stay equal.
_MADE = 0


def view_tag(metrics: Sequence[str], params: Sequence[str], pictures: Sequence[str]) -> tuple[str, str]:
    """Key and value of the tag that is the view. What is not in it is as MLflow has it by default.

    Args:
        metrics: their columns, under MLflow's names, first to last.
        params: their columns.
        pictures: their keys, `SECTION/NAME`; the charts begin with them. MLflow adds the charts of all metrics.
    """
    columns = ["attributes.`Created`", "attributes.`Duration`", *(f"metrics.`{name}`" for name in metrics)]
    columns += [f"params.`{name}`" for name in params] + ["tags.`align.git_revision`"]
    state: dict[str, Any] = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {name: 24 + 7 * len(name.partition(".")[2]) for name in columns[2:]},  # headers are whole
        "compareRunCharts": [_picture(key) for key in pictures],
        "compareRunSections": [_section(name) for name in dict.fromkeys(key.partition("/")[0] for key in pictures)],
        "isAccordionReordered": True,
    }
    view = {"name": "ALIGN", "createdAt": _MADE, "updatedAt": _MADE, "state": json.dumps(state)}
    return _TAG, json.dumps(view)


def _picture(key: str) -> dict[str, Any]:
    """A chart that shows the picture of each run under one key."""
    return {
        "type": "IMAGE",
        "uuid": key,
        "metricSectionId": key.partition("/")[0],
        "displayName": key,
        "imageKeys": [key],
        "step": 0,
        "runsCountToCompare": 10,
        "showRunParams": False,
        "deleted": False,
        "isGenerated": False,
    }


def _section(name: str) -> dict[str, Any]:
    """A group of charts, with room for pictures to be read."""
    return {
        "uuid": name,
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": 1,
        "cardHeight": 480,
    }


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def runs_address(server: str, experiment_id: str) -> str:
    """The address of the list of an experiment's runs, in the saved view."""
    return f"{server}/#/experiments/{experiment_id}/runs?{TRAINING}&viewStateShareKey={KEY}"
