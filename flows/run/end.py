"""Gives a flow run, and what is below it, an end in Prefect, where nobody else is left to do so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
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
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed

from align.errors import ServiceError, without_logins

#: The number of runs that Prefect returns at once.
PAGE = 200
_MESSAGE = "its process ended without recording its end"
_UNFINISHED = [kind for kind in StateType if kind not in TERMINAL_STATES]
#: A run in another state that is not final waits to be started, again or for the first time.
_WORKS = (StateType.RUNNING, StateType.CANCELLING)


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
        where = without_logins(PREFECT_API_URL.value() or "no address")
        raise ServiceError(f"Prefect at {where} does not answer: {' '.join(str(error).split())[:200]}") from None


def end_in_prefect(run_id: UUID, state: State[Any] | None = None) -> str:
    """Ends a run whose process is over: with `state`, else as Cancelled if that was asked for, else as Crashed.

    Its unfinished sub-flows and tasks end alike. A run that waits to be started again stays as it is.

    Returns:
        What was done, in words; empty if nothing.

    Raises:
        ServiceError: Prefect's server does not answer.
    """
    with answering_client() as client:
        try:
            run = client.read_flow_run(run_id)
        except ObjectNotFound:
            return "Prefect does not know it (any more)"
        end, done = state or _end_of(run), []
        if run.state_type in _WORKS:
            client.set_flow_run_state(run_id, end, force=True)
            done.append(f"flow run {run.name} is {end.name}")
        elif run.state_type in _UNFINISHED:
            return ""
        flows, tasks = _unfinished_below(client, run_id)
        for task in tasks:
            client.set_task_run_state(task, end, force=True)
        for flow in flows:
            client.set_flow_run_state(flow.id, end, force=True)
        if flows or tasks:
            done.append(f"{len(flows)} sub-flows and {len(tasks)} tasks are {end.name}")
        return f"in Prefect {', '.join(done)}" if done else ""


def _end_of(run: FlowRun) -> State[Any]:
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
