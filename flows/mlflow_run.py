"""The MLflow run of a pipeline run: each has one, from its first second to its end, and MLflow's list is that of runs.

Its tags say who started what, the branch and the commit that it became, digests of its data, model and evaluation sets,
the stages that came from the cache, and why it failed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime

from align.config.paths import PathsConfig
from align.config.release import RegisterConfig
from align.config.sections import known_params
from align.errors import AlignError, ServiceError
from align.local_stack import running_services
from align.release.registration.shown import headline, log_report, tables
from align.services.git import resolve
from align.services.tracking.address import user
from align.services.tracking.tracker import (
    BRANCH,
    CACHED_STAGES,
    ENDED,
    FLOW_RUN,
    REVISION,
    SOURCE,
    WHY,
    Status,
    Tracker,
    param_text,
)
from flows.checkout import run_branch
from flows.dag import Stage
from flows.run import stop
from flows.run.context import RunContext
from flows.run.record import in_a_line, keep_record, note

#: MLflow refuses longer tags.
_MAX_TAG = 5000


@dataclass(frozen=True)
class MlflowRun:
    """A run that is open.

    Attributes:
        tracker: MLflow.
        run_id: its id there.
        name: its name, that of the branch that the pipeline run is expected to become.
        page: the address of its page; None if no server shows it.
        comparison: the address where it is listed with the others; None as `page`.
    """

    tracker: Tracker
    run_id: str
    name: str
    page: str | None
    comparison: str | None

    def recorded(self, name: str, commit: str, cached: Sequence[str]) -> None:
        """Names the branch that the run became, perhaps another than expected, and its stages from the cache."""
        self.tracker.set_tags(self.run_id, {BRANCH: f"run/{name}", REVISION: commit, CACHED_STAGES: ", ".join(cached)})
        if name != self.name:  # another run took the branch's name meanwhile, or the result is an earlier run's
            self.tracker.rename_run(self.run_id, name)


@contextmanager
def mlflow_run(run: RunContext) -> Iterator[MlflowRun]:
    """Opens the MLflow run that stages log into while they work, and ends it: finished, failed or killed.

    A retry of a flow run continues its run.

    Raises:
        ServiceError: MLflow is unavailable; nothing was made yet.
    """
    tracker = Tracker(run.mlflow_tracking_uri)
    name, experiment = run_branch.next_name(run.root, run.name), run.params.section(RegisterConfig).experiment
    known = known_params(run.params)
    run_id = _continued(tracker, run, known)
    if run_id is None:
        run_id = tracker.start_run(experiment, name, tags={**_tags(run), **run.tags})
        tracker.log_params(run_id, known)
    note(mlflow_run=run_id)
    status: Status = "KILLED"  # by a signal, or in Prefect's UI; a process that is killed comes to no end
    ends = {ENDED: "cancelled", WHY: "cancelled in Prefect"}
    server = running_services(run.checkout).get("mlflow", {}).get("url")
    try:
        with tracker.watched(run_id):
            pages = tracker.page(run_id, server), tracker.runs_page(experiment, server)
            yield MlflowRun(tracker, run_id, name, *pages)
        status, ends = "FINISHED", {}
    except Exception as error:
        status, ends = "FAILED", {WHY: in_a_line(error)[:_MAX_TAG]}
        raise
    except stop.Stopped as ended:
        ends[WHY] = str(ended)
        raise
    finally:
        try:
            if ends:
                tracker.set_tags(run_id, ends)
            tracker.end_run(run_id, status=status)
        except ServiceError as error:
            keep_record()
            if status == "FINISHED":
                raise
            get_run_logger().warning("its run in MLflow is not ended: %s; `align runs --repair` does that", error)


def record_refused(root: Path, name: str, error: AlignError) -> None:
    """Lists a run that was refused before its run was opened, as far as MLflow and params.yaml can be read."""
    run = RunContext(root=root, checkout=root, name=name)
    with suppress(AlignError):
        experiment, tracker = run.params.section(RegisterConfig).experiment, Tracker(run.mlflow_tracking_uri)
        tags = _tags(run) | {ENDED: "refused", WHY: in_a_line(error)[:_MAX_TAG]}
        tracker.end_run(tracker.start_run(experiment, name, tags), status="FAILED")


def log_stage(stage: Stage, run: RunContext) -> None:
    """Logs the report of a stage into the open run. What MLflow does not take, `align register` logs at the end."""
    if run.mlflow_run_id is None or not (run.root / stage.report / "metrics.json").is_file():
        return
    names = [one.name for one in run.chosen.stages]
    so_far = [run.root / one.report for one in run.chosen.stages[: names.index(stage.name) + 1]]
    try:
        tracker = Tracker(run.mlflow_tracking_uri)
        shards = run.params.section(PathsConfig).shards
        log_report(tracker, run.mlflow_run_id, so_far[-1], headline(run.params.values), shards)
        tracker.log_tables(run.mlflow_run_id, tables(so_far))
    except ServiceError as error:
        get_run_logger().warning("MLflow does not have the report of %s yet: %s", stage.name, error)


def _tags(run: RunContext) -> dict[str, str]:
    return {
        "mlflow.user": user(),
        SOURCE: "align run" if runtime.deployment.id is None else f"deployment {runtime.deployment.name}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": resolve(run.root, "HEAD"),
        FLOW_RUN: _flow_run(),
    }


def _continued(tracker: Tracker, run: RunContext, known: Mapping[str, Any]) -> str | None:
    """The run of an earlier attempt of this flow run, if it began with these parameters and tags; it continues."""
    condition = f"tags.`{FLOW_RUN}` = '{_flow_run()}' and attributes.status != 'FINISHED'"
    for earlier in tracker.runs(condition):
        is_same = {key: param_text(value) for key, value in known.items()}.items() <= earlier.params.items()
        if is_same and run.tags.items() <= earlier.tags.items():  # all runs of a study are of one flow run
            tracker.resume_run(earlier.run_id)
            return earlier.run_id
    return None


def _flow_run() -> str:
    return str(runtime.flow_run.root_flow_run_id)
