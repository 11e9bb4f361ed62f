"""One run as `align compare` and `align runs` show it: as MLflow has it, or this checkout as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from align.config import Params
from align.config.infrastructure import HealthConfig
from align.config.model import ModelConfig
from align.config.params import flattened
from align.config.paths import MAKE_PRETRAINED, PathsConfig
from align.config.recipe import FinetuneConfig
from align.config.sections import known_params
from align.errors import without_logins
from align.release.registration.shown import DIGESTS, digests_of, measured, metrics_of, table_metrics
from align.services.git import git_if_any
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import BRANCH, CACHED_STAGES, FLOW_RUN, REVISION, Tracker, param_text

#: The name of the checkout as a run.
HERE = "."
#: What training cost: `STAGE/WHAT` -> a number, or CACHED if the stage did not run.
STAGES = ("pretrain", "finetune")
HOURS, SPEED, COST = "device_hours", "pairs_per_s", "cost"
CACHED = "cached"


class Measured(NamedTuple):
    """A main metric with its 95 % interval and the chance level, all 0 to 1."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: that of its branch without `run/`, or MLflow's; `.` is the checkout.
        state: see `align.lineage.runs.listing`; of the checkout, empty.
        time: when it ended, or began if it has not; seconds since 1970.
        commit: of its branch, or the one that it was started from; of the checkout, HEAD.
        params: `section.key` -> value, as MLflow shows it.
        metrics: of every stage, by their flat names; empty until `measured_run` has read them.
        digests: what names its `data`, `model` and `evaluation`, as far as they are known.
        costs: see STAGES.
        tracked: as MLflow has it; None of the checkout.
        folder: where it works, or has worked; empty: not known here.
        why: it failed.
        doing: how far it is, if it is running and says so.
    """

    name: str
    state: str
    time: float
    commit: str
    params: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float | str] = field(default_factory=dict)
    tracked: TrackedRun | None = None
    folder: str = ""
    why: str = ""
    doing: str = ""

    @property
    def branch(self) -> str:
        """`run/NAME`; empty: it was not recorded."""
        return self.tracked.tags.get(BRANCH, "") if self.tracked else ""

    @property
    def flow_run(self) -> str:
        """Its id in Prefect; empty: it is none there."""
        return self.tracked.tags.get(FLOW_RUN, "") if self.tracked else ""

    @property
    def run_id(self) -> str:
        """Its id in MLflow; empty of the checkout."""
        return self.tracked.run_id if self.tracked else ""

    @property
    def when(self) -> str:
        """Its time in words, such as 2026-01-31T12:00:00Z."""
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def measured(self) -> dict[str, Measured]:
        """The main metrics: recall@10 and accuracies, those that have an interval and a chance level."""
        return {
            f"{of}/{metric}": Measured(*numbers)
            for of, metric, *numbers in measured(self.metrics)
            if f"/{metric}".endswith(("/recall@10", "/accuracy")) and None not in numbers
        }


def tracked_as_run(tracked: TrackedRun, state: str, health: HealthConfig) -> Run:
    """A run of MLflow, without what its table has."""
    tags = tracked.tags
    return Run(
        tracked.name,
        state,
        tracked.ended_at or tracked.started_at,
        tags.get(REVISION) or tags.get("mlflow.source.git.commit", ""),
        tracked.params,
        digests={what: tags[tag] for what, tag in DIGESTS.items() if tag in tags},
        costs=_costs(tracked, health),
        tracked=tracked,
    )


def measured_run(run: Run, tracker: Tracker) -> Run:
    """The same run with its metrics."""
    return replace(run, metrics=table_metrics(tracker, run.run_id))


def checkout_as_run(root: Path, params: Params) -> Run:
    """The checkout: these values, and the reports that lie there."""
    paths = params.section(PathsConfig)
    values, others = known_params(params), tuple[str, ...]()
    if paths.is_made_elsewhere(params.section(FinetuneConfig).start):
        others = MAKE_PRETRAINED
        config = root / paths.finetuned / "config.json"  # of the model that fine-tuning began with
        shape = json.loads(config.read_bytes()).get("model", {}) if config.is_file() else {}
        values |= flattened({ModelConfig.section: shape})
    reports = [path for path in sorted((root / paths.reports).glob("*")) if path.is_dir() and path.name not in others]
    head = (git_if_any(root, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip()
    return Run(
        HERE,
        "",
        datetime.now(UTC).timestamp(),
        head,
        {name: without_logins(param_text(value)) for name, value in values.items()},
        metrics_of(reports),
        digests_of(reports),
    )


def _costs(tracked: TrackedRun, health: HealthConfig) -> dict[str, float | str]:
    cached = tracked.tags.get(CACHED_STAGES, "").split(", ")
    costs: dict[str, float | str] = {f"{stage}/{HOURS}": CACHED for stage in STAGES if stage in cached}
    for stage in STAGES:
        for what in (HOURS, SPEED, COST):
            if (value := tracked.metrics.get(f"{stage}/train/{what}")) is not None:
                costs[f"{stage}/{what}"] = value
        hours, price = tracked.metrics.get(f"{stage}/train/{HOURS}"), health.price_per_hour
        if hours is not None and price is not None:
            costs.setdefault(f"{stage}/{COST}", hours * price)
    return costs
