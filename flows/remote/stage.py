"""A stage that another machine's run asks for: the flow of a worker. See `flows.remote` for the whole."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from align.config import load_params
from align.config.params import PARAMS_FILE
from align.config.paths import below_root
from align.errors import AlignError, ConfigError, DataError
from align.services.dvc.commands import write_code
from flows import this_run
from flows.dag import read_dag
from flows.progress import run_page
from flows.reconcile import reconcile
from flows.remote.exchange import exchange
from flows.remote.heartbeat import Heartbeat
from flows.remote.order import FLOW, GIVEN_UP, Order
from flows.remote.refs import fetched
from flows.request import Request
from flows.run_context import RunContext, child_environment, log_file, progress_file
from flows.stage_task import StageOutcome, run_stages
from flows.workspace import in_worktree


@flow(
    name=FLOW,
    flow_run_name="{order.stage} of {order.run}",
    on_completion=[this_run.end_record],
    on_failure=[this_run.end_record],
)
def stage(order: Order) -> State[Any]:
    """Runs one stage at a commit of another machine, and gives its result to DVC's remote.

    The state is Completed, Cached or Failed; the message of the last is the line with the reason, for the head.
    """
    root, log, run_id = Path.cwd(), get_run_logger().info, UUID(str(runtime.flow_run.id))
    try:
        # the heartbeat first: fetching, and waiting for another run of the same, may take long
        with Heartbeat(run_id) as heartbeat, this_run.in_progress(root) as record, fetched(root, order):
            _require_wanted(run_id)
            reconcile(root, log, record)
            with in_worktree(root, Request(name=order.run, ref=order.commit), log, inputs=False) as workspace:
                this_run.works_in(workspace.root, workspace.kept)
                run = RunContext(
                    root=workspace.root, checkout=root, name=order.run, attempt=record.attempt_id, kept=workspace.kept,
                    stages=frozenset({order.stage}), stale=frozenset({order.stage}),
                    mlflow_run_id=order.mlflow_run_id if os.environ.get("MLFLOW_TRACKING_URI") else None,
                )  # fmt: skip
                outcome = _run(run, order, heartbeat, log)
    except (AlignError, OSError) as error:  # a full disk is one
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
    with run_page(UUID(str(runtime.flow_run.id)), f"{order.stage} of {order.run}") as page:
        page.watch(progress_file(run.root), [asked])
        heartbeat.progress = progress_file(run.root)
        write_code(run.root, child_environment(run))
        exchange("accept", run, log, order.stage, order.remote, json.dumps(order.reads))
        [outcome] = run_stages([asked], run)
        exchange("give", run, log, order.stage)
    measured = run.root / below_root(load_params(run.root / PARAMS_FILE).values["paths"])["runtime"]
    if (file := measured / f"{order.stage}.json").exists():
        heartbeat.passes_on(file)
    return outcome
