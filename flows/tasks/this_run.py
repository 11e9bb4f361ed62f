"""The flow run that this process is: its name, and its record from start to end (`align.pipeline.run_records`).

Every flow that somebody starts has a record: `@flow(on_completion=[end_record], on_failure=[end_record])`, and
`in_progress` around all that it does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, Pause
from prefect.flows import Flow
from prefect.states import Cancelled

from align.errors import AlignError, ServiceError
from align.pipeline import run_records
from align.pipeline.run_records import Held, RunRecord
from flows.checkout import run_branch
from flows.reconcile import answering_client, end_in_prefect, mlflow_address, prefect_address
from flows.request import Request
from flows.tasks import stop
from flows.tasks.outages import keep_output, wait_out_outages


class _OneLine(logging.Filter):
    """Drops the traceback of an AlignError, whose message says all, and what Prefect says of what was stopped."""

    def filter(self, record: logging.LogRecord) -> bool:
        if stop.is_stopping() and record.getMessage().startswith(("Task run was aborted", "Finished in state")):
            return False
        if record.exc_info and (isinstance(record.exc_info[1], AlignError) or stop.is_stopping()):
            record.exc_info = None
        return True


def one_line_errors() -> None:
    """Makes Prefect log an AlignError as one line, without a traceback."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _OneLine) for existing in logger.filters):
            logger.addFilter(_OneLine())


#: The records that are removed when their flow run has ended in Prefect, too.
_HELD: dict[UUID, Held] = {}


def name_of(root: Path, request: Request) -> str:
    """The run's name: the request's, else the one that Prefect shows, made valid for a branch.

    A deployed run that a program asked for by name has that name in Prefect, too.

    Raises:
        ConfigError: no branch can have this name.
    """
    name = (request.name or "").strip() or run_branch.valid_name(str(runtime.flow_run.name or ""))
    run_branch.check_name(root, name)
    if request.name and runtime.deployment.id and name != runtime.flow_run.name:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(runtime.flow_run.id), name=name)
    return name


@contextmanager
def in_progress(name: str | None = None) -> Iterator[RunRecord]:
    """Records that this run is in progress, from its first line on; yields the record.

    While the block runs, errors are one line in its log, and it waits for a server or a worker that dies. The record's
    lock is held until the process ends.

    Args:
        name: of the run; empty: Prefect's.
    """
    root = Path.cwd()
    one_line_errors()
    keep_output(root)
    wait_out_outages()
    run_id = UUID(runtime.flow_run.id)
    with get_client(sync_client=True) as client:
        attempt = client.read_flow_run(run_id).run_count
    record = RunRecord(
        (name or "").strip() or str(runtime.flow_run.name), str(run_id), attempt, prefect_address(root),
        mlflow_address(root), str(root), flow=str(runtime.flow_run.flow_name),
    )  # fmt: skip
    _HELD[run_id] = run_records.hold(record)
    try:
        with stop.whatever_it_became():
            yield record
    except (Pause, Abort) as ended:  # its states in Prefect already say so
        if isinstance(ended, stop.Stopped):
            try:
                with answering_client() as client:
                    client.set_flow_run_state(run_id, Cancelled(message=str(ended)), force=True)
                end_in_prefect(record, is_mine=False)
            except ServiceError:  # the record stays, and the next run repairs
                raise ended from None
        _end(run_id)
        raise


def note(**values: Any) -> None:
    """Puts into the run's record what is known now: its `name`, its `worktree`, and where its reports are `kept`."""
    if (held := _HELD.get(UUID(runtime.flow_run.id))) and held.record:
        held.write(replace(held.record, **values))


def leaves_something() -> None:
    """Keeps the record beyond the end of this run, for `flows.reconcile`: something could not be ended."""
    if held := _HELD.get(UUID(runtime.flow_run.id)):
        held.is_kept = True


def end_record(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook that Prefect calls when the flow run has ended there, in any state."""
    _end(flow_run.id)


def _end(run: UUID) -> None:
    if (held := _HELD.get(run)) and not held.is_kept:
        held.remove()


def tag(*tags: str) -> None:
    """Adds tags to the outermost flow run, which a person sees."""
    run_id = UUID(runtime.flow_run.root_flow_run_id)
    with get_client(sync_client=True) as client:
        client.update_flow_run(run_id, tags={*client.read_flow_run(run_id).tags, *tags})
