"""What a run cost, as far as it is recorded: in MLflow, or in this checkout's runtime/ by the run that wrote its model.

Keys are `STAGE/WHAT`: device_hours, pairs_per_s, cost. A value is a number, or `cached` if the stage did not run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from align.config.infrastructure import HealthConfig
from align.errors import ServiceError
from align.services.tracking.address import has_store
from align.services.tracking.tracker import Tracker

#: The stages that train.
STAGES = ("pretrain", "finetune")
HOURS, SPEED, COST = "device_hours", "pairs_per_s", "cost"
CACHED = "cached"
#: The tag that `align register` gives, see align/release/registration/results.py.
_MODEL_DIGEST = "align.model_digest"
#: File systems keep times of files more coarsely than clocks tell them.
_COARSE_S = 2.0


class Costs:
    """Looks up runs in MLflow, if it was used here before.

    Attributes:
        problem: one line that says why nothing is known; None while MLflow answers.
    """

    def __init__(self, experiment: str, health: HealthConfig) -> None:
        self._experiment, self._health = experiment, health
        self.problem: str | None = None
        self._tracker: Tracker | None = None
        if not has_store():
            self.problem = (
                "no cost: MLflow was not used here (MLFLOW_TRACKING_URI is not set, and there is no mlflow.db)"
            )

    def of_model(self, digest: str) -> dict[str, float | str]:
        """What the runs that made this model recorded; each number comes from the newest run that has it."""
        return self._of(lambda tracker: tracker.find_runs(self._experiment, _MODEL_DIGEST, digest))

    def of_run(self, run_id: str) -> dict[str, float | str]:
        """What a run of MLflow recorded, even one that failed."""
        return self._of(lambda tracker: [run_id])

    def _of(self, runs: Callable[[Tracker], list[str]]) -> dict[str, float | str]:
        if self.problem:
            return {}
        try:
            self._tracker = self._tracker or Tracker()
            costs: dict[str, float | str] = {}
            for run_id in runs(self._tracker):
                costs = self._of_run(self._tracker, run_id) | costs
        except ServiceError as error:
            self.problem = f"no cost: {error}"
            return {}
        return self._priced(costs)

    def _priced(self, costs: dict[str, float | str]) -> dict[str, float | str]:
        for stage in STAGES:
            hours, price = costs.get(f"{stage}/{HOURS}"), self._health.price_per_hour
            if isinstance(hours, float) and price is not None:
                costs.setdefault(f"{stage}/{COST}", hours * price)
        return costs

    def _of_run(self, tracker: Tracker, run_id: str) -> dict[str, float | str]:
        logged = tracker.metrics(run_id)
        known: dict[str, float | str] = {
            f"{stage}/{what}": logged[f"{stage}/train/{what}"]
            for stage in STAGES
            for what in (HOURS, SPEED, COST)
            if f"{stage}/train/{what}" in logged
        }
        cached = tracker.tags(run_id).get("cached_stages", "").split(", ")
        return {f"{stage}/{HOURS}": CACHED for stage in STAGES if stage in cached} | known


def of_checkout(runtime: Path, reports: Path) -> dict[str, float | str]:
    """The speed of the training stages in this checkout, where the last run of a stage wrote the report that is there.

    The report may have come from DVC's cache since; then its time is outside of that run's.
    """
    costs: dict[str, float | str] = {}
    for stage in STAGES:
        try:
            record = json.loads((runtime / f"{stage}.json").read_bytes())
            written = (reports / stage / "report.json").stat().st_mtime
            start = datetime.strptime(record["started_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
            speed = float(record[SPEED])
            is_its = start - _COARSE_S <= written <= start + record["wall_s"] + _COARSE_S
            if record["outcome"] == "completed" and speed and is_its:  # 0: no step to train
                costs[f"{stage}/{SPEED}"] = speed
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return costs
