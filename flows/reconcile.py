"""`python -m flows.reconcile`: gives runs whose process was killed a true end, and removes what they left.

After `kill -9`, a power cut or `make down`, nobody is left to say that a run has ended: flow runs and tasks stay
Running in Prefect, and a run in MLflow; a worktree stays on disk. `make up` calls this, so does each run when it
starts, and `align runs --repair`. Which runs are dead is certain, see `align.pipeline.run_records`; a live one is never
touched, nor one of another checkout or machine. What cannot be repaired now because a server does not answer stays
recorded.

A deployed run may be killed before it has a record, and nobody else repairs it: a worker tells Prefect that the run is
Pending, and starts a process, which takes seconds to import what it needs and then says Running. If both are killed
meanwhile, the run stays as it is for good. It counts as dead if all of this is certain; otherwise it is left alone:

* Prefect's server is the one that `make up` started in this checkout, on this machine, and only the worker of `make up`
  ever worked for its pool. A server that a team shares, or another worker, does not say where a run works.
* The run is one of a deployment whose flows work in this checkout. Prefect knows no place of a run that somebody typed;
  such a run records itself in its first moment.
* No process of this machine works on it. A process's environment tells, which its children inherit.
* It has begun (Running), or is older than every worker that works here now: a worker may be about to start it.
* Its state is still the same after all this was checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from align.display.console import say
from align.errors import AlignError, FormatError, ServiceError, without_logins
from align.pipeline import run_records
from align.pipeline.run import running_services
from align.pipeline.run_records import Held, RunRecord
from align.services.tracking.tracker import ATTEMPT, Tracker
from flows.checkout.leftovers import sweep

#: Pool and worker of `make up` (infra/local.py).
POOL = WORKER = "local"
#: What Prefect puts into the environment of a run's process.
_RUN = "PREFECT__FLOW_RUN_ID"
#: Clocks of the kernel and of states differ by less.
_MARGIN_S = 5.0
_MESSAGE = "its process ended without recording its end"
#: The number of runs that Prefect returns at once.
PAGE = 200
_UNFINISHED: list[StateType] = [kind for kind in StateType if kind not in (
    StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED
)]  # fmt: skip


def end_in_prefect(record: RunRecord, *, is_mine: bool) -> str | None:
    """Gives a dead run its true end: Cancelled if that was asked for, else Crashed.

    Returns what was done, in words; None if another attempt of the run has begun elsewhere: then nothing is done. A run
    that waits for its next attempt, or is in it, keeps its state; what the dead attempt left is ended.

    Args:
        record: of the dead attempt.
        is_mine: this process is the next attempt of the same run.

    Raises:
        ServiceError: Prefect's server does not answer.
    """
    run_id = UUID(record.flow_run)
    with answering_client() as client:
        # In this order: an attempt that began since counts one more, and what was found before does not belong to it.
        flows, tasks = _unfinished_below(client, run_id)
        try:
            run = client.read_flow_run(run_id)
        except ObjectNotFound:
            return "Prefect does not know it (any more)"
        if run.run_count > record.attempt and not is_mine and run.state_type in _UNFINISHED:
            return None
        ends = run.state_type in (StateType.RUNNING, StateType.CANCELLING) and not is_mine
        return _set_end(client, run, flows, tasks, ends=ends)


@contextmanager
def answering_client() -> Iterator[SyncPrefectClient]:
    """A client of Prefect's server.

    Raises:
        ServiceError: the server does not answer.
    """
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectHTTPStatusError, PrefectException, RuntimeError) as error:
        where = without_logins(PREFECT_API_URL.value() or "its temporary server")
        raise ServiceError(f"Prefect at {where} does not answer: {' '.join(str(error).split())[:200]}") from None


def _set_end(
    client: SyncPrefectClient, run: FlowRun, flows: list[FlowRun], tasks: list[UUID], *, ends: bool = True
) -> str:
    """`ends`: whether to end the run itself, and not only what is below it."""
    end = _end_of(run).name
    for task in tasks:
        client.set_task_run_state(task, _end_of(run), force=True)
    for flow in flows:
        client.set_flow_run_state(flow.id, _end_of(run), force=True)
    done = []
    if ends:
        client.set_flow_run_state(run.id, _end_of(run), force=True)
        done.append(f"flow run {run.name} is {end}")
    if flows or tasks:
        done.append(f"{len(flows)} sub-flows and {len(tasks)} tasks are {end}")
    return f"in Prefect {', '.join(done)}" if done else ""


def _end_of(run: FlowRun) -> State[None]:
    """Crashed, or Cancelled if that was asked for, even if nobody was left to obey."""
    if run.state and run.state.type == StateType.CANCELLED:
        return Cancelled(message=run.state.message)
    return Cancelled(message=_MESSAGE) if run.state_type == StateType.CANCELLING else Crashed(message=_MESSAGE)


def _unfinished_below(client: SyncPrefectClient, run: UUID) -> tuple[list[FlowRun], list[UUID]]:
    """The unfinished sub-flows of a run, and theirs, the innermost first; and the unfinished tasks of all."""
    below = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
    )
    flows: list[FlowRun] = []
    tasks = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED))),
        limit=PAGE,
    )
    ids = [task.id for task in tasks]
    for flow in client.read_flow_runs(flow_run_filter=below, limit=PAGE):
        inner, theirs = _unfinished_below(client, flow.id)
        flows += [*inner, flow]
        ids += theirs
    return flows, ids


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
    """Ends runs of a checkout that were killed before they had a record. Returns how many.

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
            done = _set_end(client, run, *_unfinished_below(client, run.id))
            log(f"flow run {run.name} was killed before it began: {done}")
    return len(dead)


def is_dead(run: FlowRun, processes: Processes) -> bool:
    """Whether nobody works, or will work, on a deployed run of this checkout that is Pending, Running or Cancelling."""
    if str(run.id) in processes.runs:
        return False
    if run.state_type == StateType.RUNNING or processes.oldest_worker is None:
        return True
    return run.state is not None and run.state.timestamp.timestamp() + _MARGIN_S < processes.oldest_worker


def look(root: Path) -> Processes:
    """Looks at all processes of this user: nobody else knows the login of the server of `make up`."""
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


def prefect_address(root: Path) -> str:
    """Prefect's server as a record names it: empty for the checkout's own and for the temporary one of a run."""
    url = PREFECT_API_URL.value()
    own = running_services(root).get("prefect", {}).get("url")
    return "" if url is None or url == f"{own}/api" else without_logins(url)


def mlflow_address(root: Path) -> str:
    """MLflow's store as a record names it: empty for the checkout's own, with a server or without."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or ""
    return "" if uri == running_services(root).get("mlflow", {}).get("url") else without_logins(uri)


def reconcile(root: Path, log: Callable[[str], None], mine: RunRecord | None = None) -> tuple[int, int]:
    """Ends dead runs of a checkout. Returns how many, and how many must wait for a server that does not answer.

    `mine` is the record of the run that this process is.
    """
    try:
        sweep(root, log)
    except (AlignError, OSError) as error:
        log(f"the worktrees of killed runs stay: {error}")
    ended = left = 0
    for lock in run_records.locks(root):
        try:
            with run_records.claimed(lock) as held:
                if held is None:  # live, or repaired by another process
                    continue
                said, is_done = _repair(held, root, lock, mine)
        except (FormatError, OSError) as error:
            said, is_done = f"{error}", False
        if said:
            log(said)
        ended += bool(is_done and said)
        left += not is_done
    try:
        ended += end_unrecorded(root, log)
    except ServiceError as error:
        log(f"{error}: runs that were killed before they began are left for the next time")
        left += 1
    return ended, left


def _repair(held: Held, root: Path, lock: Path, mine: RunRecord | None) -> tuple[str, bool]:
    """What to say (empty if nobody needs to know), and whether nothing is left to do."""
    record = held.record
    if record is None:  # it died before it began
        held.remove()
        return "", True
    kind = run_records.liveness(record, lock)
    if kind == "copied":
        held.remove()
        return f"{record.title}: belongs to {record.root}; this folder is a copy of it and forgets the run", True
    if kind == "elsewhere":
        return f"{record.title}: is {record.host}'s; `align runs --repair` there says whether it lives", False
    is_mine = mine is not None and record.flow_run == mine.flow_run
    done, waits = [], []
    for end in (_end_prefect, _end_mlflow):
        try:
            done.append(end(record, root, is_mine))
        except ServiceError as error:
            waits.append(f"{error}: left for the next time")
    if None in done:  # the next attempt, or a later one, takes care of what this one left
        return "", True
    if not waits:
        held.remove()
    what = "; ".join(filter(None, [*done, *waits]))
    return f"{record.title} was killed: {what}" if what else "", not waits


def _end_prefect(record: RunRecord, root: Path, is_mine: bool) -> str | None:
    if record.prefect != prefect_address(root):
        where = record.prefect or "this checkout's"
        raise ServiceError(f"it is a run of another Prefect server, {where} (PREFECT_API_URL)")
    return end_in_prefect(record, is_mine=is_mine)


def _end_mlflow(record: RunRecord, root: Path, _is_mine: bool) -> str:
    own = root / "mlflow.db"
    if not record.mlflow and not own.is_file():
        return ""
    configured = os.environ.get("MLFLOW_TRACKING_URI", "")
    known = configured if without_logins(configured) == record.mlflow else record.mlflow
    tracker = Tracker(known if record.mlflow else f"sqlite:///{own}")
    runs = tracker.runs(f"tags.`{ATTEMPT}` = '{record.attempt_id}' and attributes.status = 'RUNNING'")
    for run in runs:
        tracker.end_run(run.run_id, status="KILLED")
    return "in MLflow its run is KILLED" if runs else ""


def main(argv: Sequence[str]) -> int:
    """Says what was repaired; with --quiet, is silent if nothing was. Returns 1 if something is left."""
    ended, left = reconcile(Path.cwd(), say)
    if not ended and not left and "--quiet" not in argv:
        say("no killed run is left to repair")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
