"""The flow of a worker: runs a stage for another machine's run. See `flows.remote` for the whole.

A worker's signs of life: labels of its flow run, which the head of the run looks at (`flows.remote.send`).
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from align.errors import AlignError, ConfigError, DataError
from align.services.dvc.commands import write_code
from flows.checkout.worktree import in_worktree
from flows.dag import read_dag
from flows.ended import repair
from flows.pages.progress import progress
from flows.remote.exchange import exchange, fetched
from flows.remote.order import FLOW, GIVEN_UP, HEARD, MAX_LABEL_BYTES, RUNTIME, SAID, Order
from flows.request import Request
from flows.run import record
from flows.run.context import RunContext, StageOutcome, child_environment, log_file, progress_file
from flows.stage import run_stages

#: Seconds between two signs.
EVERY_S = 3.0


class Heartbeat:
    """While this context is open, a number grows, and what the stage says is passed on.

    Attributes:
        progress: the file in which the stage says how far it is; None: it has not begun.
    """

    def __init__(self, run_id: UUID) -> None:
        self.progress: Path | None = None
        self._runtime = ""
        self._id = run_id
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """A failing server never costs the stage's result."""
        self._done.set()
        self._thread.join(EVERY_S)  # of two writers of labels, one would lose its labels
        if self._runtime:
            with suppress(Exception), get_client(sync_client=True) as client:  # the result does not depend on it
                client.update_flow_run_labels(self._id, {RUNTIME: self._runtime})

    def passes_on(self, runtime: Path) -> None:
        """Keeps what the stage measured of itself; the head gets it at the end."""
        self._runtime = runtime.read_text("utf-8")[:MAX_LABEL_BYTES]

    def _beat(self) -> None:
        number = 0
        while not self._done.is_set():
            with suppress(Exception), get_client(sync_client=True) as client:  # a new client after each failure
                while not self._done.is_set():
                    number += 1
                    self._send(client, number)
                    self._done.wait(EVERY_S)
            self._done.wait(EVERY_S)

    def _send(self, client: SyncPrefectClient, number: int) -> None:
        said = ""
        if self.progress is not None:
            with suppress(OSError):
                said = self.progress.read_text("utf-8", "replace")[:MAX_LABEL_BYTES]
        client.update_flow_run_labels(self._id, {HEARD: number, SAID: said})


@flow(
    name=FLOW,
    flow_run_name="{order.stage} of {order.run}",
    on_completion=[record.end_record],
    on_failure=[record.end_record],
)
def stage(order: Order) -> State[Any]:
    """Runs one stage at a commit of another machine, and gives its result to DVC's remote.

    The state is Completed, Cached or Failed; the message of a failed one is the line with the reason, for the head.
    """
    root, log, run_id = Path.cwd(), get_run_logger().info, UUID(str(runtime.flow_run.id))
    try:
        # the heartbeat first: fetching, and waiting for an equal run, may take long
        with Heartbeat(run_id) as heartbeat, record.in_progress(), fetched(root, order):
            _require_wanted(run_id)
            repair(root, log)
            with in_worktree(root, Request(name=order.run, ref=order.commit), log, inputs=False) as workspace:
                record.note(worktree=str(workspace.root))
                run = RunContext(
                    root=workspace.root, checkout=root, name=order.run, stale=frozenset({order.stage}),
                    mlflow_run_id=order.mlflow_run_id if os.environ.get("MLFLOW_TRACKING_URI") else None,
                )  # fmt: skip
                outcome = _run(run, order, heartbeat, log)
    except (AlignError, OSError) as error:  # such as a full disk
        get_run_logger().error("%s", error)
        return Failed(message=f"{error} (on {socket.gethostname()})")
    return Completed(message="its result is in DVC's remote", name="Completed" if outcome.ran else "Cached")


def _require_wanted(run_id: UUID) -> None:
    """Raises DataError if the head counts this machine as lost: it may have slept."""
    with get_client(sync_client=True) as client:
        if client.read_flow_run(run_id).labels.get(GIVEN_UP):
            raise DataError("this machine was counted as lost, and another one works on the stage")


def _run(run: RunContext, order: Order, heartbeat: Heartbeat, log: Callable[[str], None]) -> StageOutcome:
    asked = next((each for each in read_dag(run.root) if each.name == order.stage), None)
    if asked is None:
        raise ConfigError(f"{order.commit[:10]}: dvc.yaml has no stage '{order.stage}'")
    log_file(run.root).parent.mkdir(parents=True, exist_ok=True)
    log_file(run.root).write_bytes(b"")
    with progress(progress_file(run.root), [asked]):
        heartbeat.progress = progress_file(run.root)
        write_code(run.root, child_environment(run))
        exchange("accept", run, log, order.stage, order.remote, json.dumps(order.reads))
        [outcome] = run_stages([asked], run)
        exchange("give", run, log, order.stage)
    if (file := run.runtime / f"{order.stage}.json").exists():
        heartbeat.passes_on(file)
    return outcome
