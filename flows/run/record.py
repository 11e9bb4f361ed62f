"""The flow run that this process is, and its record from start to end (`align.durable.run_records`).

Every flow that somebody starts has a record: `@flow(on_completion=[end_record], on_failure=[end_record])`, and
`in_progress` around all that it does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort, Pause
from prefect.flows import Flow
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from align.durable.run_records import Held, RunRecord, hold
from align.errors import AlignError, ServiceError, without_logins
from align.local_stack import running_services
from flows.run import stop
from flows.run.end import end_in_prefect

#: Flow run -> the reason why it ends.
_REASONS: dict[str, str] = {}


class _OneLine(logging.Filter):
    """Makes the last line of a run its reason, without tracebacks of an AlignError, whose message says all.

    What Prefect says of what was stopped, of our hook, and of an error that it has told, is left out.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        said, run = record.getMessage(), str(getattr(record, "flow_run_id", ""))
        if stop.is_stopping() and said.startswith(("Task run was aborted", "Finished in state")):
            return False
        if said.startswith(("Running hook 'end_record'", "Hook 'end_record'", "Engine execution exited")):
            return False
        if said.startswith("Finished in state") and run in _REASONS:
            record.msg, record.args = _REASONS.pop(run), ()
        if record.exc_info and (isinstance(record.exc_info[1], AlignError) or stop.is_stopping()):
            record.exc_info = None
        return True


_ONE_LINE = _OneLine()
#: The records that are removed when their flow run has ended in Prefect, too.
_HELD: dict[UUID, Held] = {}


@contextmanager
def in_progress(name: str | None = None) -> Iterator[None]:
    """Records that this run is in progress, from its first line on.

    While the block runs, errors are one line in its log. The record's lock is held until the run has ended in Prefect.

    Args:
        name: of the run; empty: Prefect's.
    """
    root, run_id = Path.cwd(), UUID(runtime.flow_run.id)
    for logger in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(logger).addFilter(_ONE_LINE)  # once, however often
    record = RunRecord(
        (name or "").strip() or str(runtime.flow_run.name), str(run_id), str(runtime.flow_run.flow_name),
        prefect=prefect_address(root),
    )  # fmt: skip
    _HELD[run_id] = hold(root, record)
    try:
        with stop.raise_if_stopped():
            yield
    except Exception as error:
        conclude(f"Failed: {in_a_line(error)}")
        raise
    except (Pause, Abort) as ended:  # its states in Prefect already say so
        if isinstance(ended, stop.Stopped):
            try:
                end_in_prefect(run_id, Cancelled(message=str(ended)))
            except ServiceError:  # the record stays, and the next run repairs
                raise ended from None
        _end(run_id)
        raise


def note(**values: Any) -> None:
    """Puts into the run's record what is known now: its `name`, its `worktree`, its `mlflow_run`."""
    if held := _mine():
        held.write(**values)


def conclude(reason: str) -> None:
    """Says why this run ends, in the last line of its log; else that is the last line of its result."""
    _REASONS[str(runtime.flow_run.id)] = reason


def in_a_line(error: Exception) -> str:
    """Why a run failed: the message, for people; an error that nobody meant to be read has its type before it."""
    said = str(error) if isinstance(error, AlignError) else f"{type(error).__name__}: {error}"
    return without_logins(" ".join(said.split()))


def keep_record() -> None:
    """Keeps the record beyond the end of this run, for `flows.ended`: something could not be ended."""
    if held := _mine():
        held.is_kept = True


def _mine() -> Held | None:
    return _HELD.get(UUID(runtime.flow_run.id)) if runtime.flow_run.id else None


def end_record(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A hook that Prefect calls when the flow run has ended there, in any state."""
    said = (state.message or str(getattr(state.data, "result", ""))).splitlines()
    _REASONS.setdefault(str(flow_run.id), f"{state.name}: {said[-1] if said else ''}")
    _end(flow_run.id)


def _end(run: UUID) -> None:
    if (held := _HELD.get(run)) and not held.is_kept:
        held.remove()
        del _HELD[run]


def prefect_address(root: Path) -> str:
    """Prefect's server as a record names it: empty for the checkout's own."""
    url = PREFECT_API_URL.value()
    own = running_services(root).get("prefect", {}).get("url")
    return "" if url is None or url == f"{own}/api" else without_logins(url)


def tag(*tags: str) -> None:
    """Adds tags to the outermost flow run, which a person sees."""
    run_id = UUID(runtime.flow_run.root_flow_run_id)
    with get_client(sync_client=True) as client:
        client.update_flow_run(run_id, tags={*client.read_flow_run(run_id).tags, *tags})
