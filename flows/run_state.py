"""What people ask of a run in Prefect's UI while a stage works: to suspend it, or to cancel it.

Suspending is honoured as cancelling is: the stage ends, with its checkpoint, and "Resume" starts the run again, which
takes finished stages from the cache and resumes training. Prefect's own answer comes when the stage has ended by
itself. Cancelling is the worker's work; a run whose worker has died obeys by itself.
"""

from __future__ import annotations

import os
import time
from typing import Any
from uuid import UUID

from prefect import get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Abort, Pause
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Suspended

from flows.remote.order import GIVEN_UP

#: The flow run that a worker started this process for.
STARTED_AS = "PREFECT__FLOW_RUN_ID"
#: A worker acts on a cancelled run within seconds.
WORKER_ACTS_WITHIN_S = 15.0
_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
#: Crashed, while this process lives: the head of its run was killed, on another machine, and `flows.reconcile` said so.
_OVER = (StateType.CANCELLED, StateType.CRASHED)


class RunState:
    """Asks for the state of the flow run that this process is: the whole run, or a stage of one on another machine."""

    def __init__(self) -> None:
        self._run = UUID(os.environ.get(STARTED_AS) or str(runtime.flow_run.root_flow_run_id))
        self._client: SyncPrefectClient | None = None
        self._cancelling_since: float | None = None

    def asked_to_end(self) -> BaseException | None:
        """Pause if the run was suspended or paused, Abort if it was cancelled and no worker ends it; else None."""
        if not PREFECT_API_URL.value():  # a temporary server, which nobody else knows
            return None
        if self._client is None:
            self._client = get_client(sync_client=True)
            self._client.__enter__()
        run = self._client.read_flow_run(self._run)
        state = run.state
        if run.labels.get(GIVEN_UP):  # this machine was cut off, and another one works on the stage
            return Abort("given up")
        if state is None:
            return None
        if state.type == StateType.PAUSED:
            return Pause(state=state)
        if state.type in _OVER or (state.type == StateType.CANCELLING and self._nobody_acts()):
            return Abort("cancelled")
        return None

    def _nobody_acts(self) -> bool:
        self._cancelling_since = self._cancelling_since or time.monotonic()
        return time.monotonic() - self._cancelling_since > WORKER_ACTS_WITHIN_S

    def show_end(self, ended: BaseException, stage: str) -> BaseException:
        """Makes the states of task, sub-flow and run say what happened, once a stage was ended.

        Args:
            ended: what `asked_to_end` returned.
            stage: the one that was ended.

        Returns:
            What the task is to raise.
        """
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(self._run)
            cancelled = run.state is not None and run.state.type in _CANCELLED  # a paused run may be, meanwhile
            paused = isinstance(ended, Pause) and not cancelled
            resumable = paused and run.deployment_id is not None
            done = f"{stage} was ended, with its checkpoint"
            if resumable:
                message = f"suspended: {done}. Resume continues from it: finished stages come from the cache"
            else:
                message = f"{'paused' if paused else 'cancelled'}: {done}. The same run resumes it"
            get_run_logger().warning(message)
            client.set_task_run_state(UUID(str(runtime.task_run.id)), Cancelled(message=message), force=True)
            if runtime.flow_run.id != str(self._run):
                client.set_flow_run_state(UUID(str(runtime.flow_run.id)), Cancelled(message=message), force=True)
            if run.labels.get(GIVEN_UP) or (run.state and run.state.is_crashed()):
                return Abort(message)  # its state says why
            if not resumable:
                client.set_flow_run_state(self._run, Cancelled(message=message), force=True)
                return Abort(message)
            # a blocking pause would be "resumed" as a running process, which has ended; and after the time that the UI
            # asks for, five minutes by default, Prefect fails the run, where the UI promises that it is resumed
            state: State[Any] = Suspended(message=message)
            if run.state and run.state.type in (StateType.PAUSED, StateType.FAILED):  # it was not resumed meanwhile
                client.set_flow_run_state(self._run, state, force=True)
            return Pause(state=state)
