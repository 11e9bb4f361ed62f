"""Deployed runs that were killed before they could record that they are in progress: nobody else repairs them.

A worker tells Prefect that a run is Pending, and starts a process, which takes seconds to import what it needs and then
says Running. If both are killed meanwhile, no record is left (`align.pipeline.run_records`), and the run stays as it is
for good. It is dead where all of this is certain; else it is left alone:

* Prefect's server is the one that `make up` started in this checkout, on this machine, and only the worker of `make up`
  ever worked for its pool. A server that a team shares, or another worker, says nothing of where a run works.
* The run is one of a deployment whose flows work in this checkout. Of a run that somebody typed Prefect knows no place;
  it records itself in its first moment.
* No process of this machine works on it. A process tells by its environment, which all that it starts inherits.
* It has begun (Running), or is older than every worker that works here now: a worker may be about to start it.
* Its state is still the same after all this was found out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL

from align.pipeline import run_records
from align.pipeline.run import running_services
from flows.prefect_states import PAGE, answering_client, end_all

#: Pool and worker of `make up` (infra/local.py).
POOL = WORKER = "local"
#: What Prefect puts into the environment of a run's process.
_RUN = "PREFECT__FLOW_RUN_ID"
#: Clocks of the kernel and of states differ by less.
_MARGIN_S = 5.0


@dataclass(frozen=True)
class Processes:
    """What works on this machine now.

    Attributes:
        runs: ids of the flow runs that a process works on.
        oldest_worker: when the oldest worker in the checkout began, in seconds since 1970; None: there is none.
    """

    runs: frozenset[str]
    oldest_worker: float | None


def end_unrecorded(root: Path, log: Callable[[str], None]) -> int:
    """Gives runs their end that were killed before they had a record. Returns how many.

    Args:
        root: the checkout.
        log: for a line about each.

    Raises:
        ServiceError: Prefect's server does not answer.
    """
    url = running_services(root).get("prefect", {}).get("url")
    if url is None or PREFECT_API_URL.value() != f"{url}/api":
        return 0
    with answering_client() as client:
        runs = _unfinished(client, root)
        if not runs:
            return 0
        # in this order: a run that ended, or began to be recorded, since it was listed has another state now
        recorded = {lock.stem for lock in run_records.locks(root)}
        processes = look(root)
        dead = [run for run in runs if f"{run.id}-{run.run_count}" not in recorded and is_dead(run, processes)]
        dead = [run for run in dead if client.read_flow_run(run.id).state_id == run.state_id]
        for run in dead:
            log(f"flow run {run.name} was killed before it began: {end_all(client, run)}")
    return len(dead)


def is_dead(run: FlowRun, processes: Processes) -> bool:
    """Whether nobody works on a deployed run of this checkout, which is Pending, Running or Cancelling, nor will."""
    if str(run.id) in processes.runs:
        return False
    if run.state_type == StateType.RUNNING or processes.oldest_worker is None:
        return True
    return run.state is not None and run.state.timestamp.timestamp() + _MARGIN_S < processes.oldest_worker


def look(root: Path) -> Processes:
    """Looks at all processes of this user, who alone knows the login of the server of `make up`."""
    runs, workers = set(), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            environment = process.environ()
            if _RUN in environment:
                runs.add(environment[_RUN])
            if {"worker", "start"} <= set(process.cmdline()) and Path(process.cwd()).samefile(root):
                workers.append(process.create_time())
    return Processes(frozenset(runs), min(workers, default=None))


def _unfinished(client: SyncPrefectClient, root: Path) -> list[FlowRun]:
    """The runs of this checkout's deployments that Prefect takes for begun."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL]))
    ours = [each for each in client.read_deployments(work_pool_filter=pool, limit=PAGE) if _works_in(each, root)]
    if not ours or any(worker.name != WORKER for worker in client.read_workers_for_work_pool(POOL)):
        return []
    begun = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id for deployment in ours]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=begun)),
        ),
        limit=PAGE,
    )


def _works_in(deployment: DeploymentResponse, root: Path) -> bool:
    """Whether its flows work in the checkout, by the step of prefect.yaml that says where."""
    folders = [values.get("directory") for step in deployment.pull_steps or () for values in step.values()]
    return str(root) in folders
