"""Ends in Prefect what a dead process left unfinished: its flow run, the sub-flows and the tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from align.errors import ServiceError, without_logins
from align.pipeline.run_records import RunRecord

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
    with answering_client() as client:
        return _end(client, record, is_mine)


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


def end_all(client: SyncPrefectClient, run: FlowRun) -> str:
    """Gives a dead run, its sub-flows and its tasks their end; returns what was done, in words."""
    flows = _unfinished_flows(client, run.id)
    tasks = _unfinished_tasks(client, [run.id, *(flow.id for flow in flows)])
    return _set_end(client, run, flows, tasks)


def _end(client: SyncPrefectClient, record: RunRecord, is_mine: bool) -> str | None:
    run_id = UUID(record.flow_run)
    # In this order: an attempt that began since counts one more, and what was found before does not belong to it.
    flows = _unfinished_flows(client, run_id)
    tasks = _unfinished_tasks(client, [run_id, *(flow.id for flow in flows)])
    try:
        run = client.read_flow_run(run_id)
    except ObjectNotFound:
        return "Prefect does not know it (any more)"
    if run.run_count > record.attempt and not is_mine and run.state_type in _UNFINISHED:
        return None
    ends = run.state_type in (StateType.RUNNING, StateType.CANCELLING) and not is_mine
    return _set_end(client, run, flows, tasks, ends=ends)


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
    is_cancelled = run.state_type in (StateType.CANCELLING, StateType.CANCELLED)
    return Cancelled(message=_MESSAGE) if is_cancelled else Crashed(message=_MESSAGE)


def _unfinished_flows(client: SyncPrefectClient, parent: UUID) -> list[FlowRun]:
    """The unfinished sub-flows of a run, and theirs, the innermost first."""
    below = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)),
    )
    found = client.read_flow_runs(flow_run_filter=below, limit=PAGE)
    return [each for flow in found for each in (*_unfinished_flows(client, flow.id), flow)]


def _unfinished_tasks(client: SyncPrefectClient, flows: list[UUID]) -> list[UUID]:
    found = client.read_task_runs(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=flows)),
        task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_UNFINISHED))),
        limit=PAGE,
    )
    return [task.id for task in found]
