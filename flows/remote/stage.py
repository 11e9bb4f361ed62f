"""A stage that another machine's run asks for: the flow of a worker. See `flows.remote` for the whole."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from flows import this_run
from flows.dag import Stage, read_dag
from flows.git_repository import git, resolve
from flows.log import one_line_errors
from flows.outages import keep_output, wait_out_outages
from flows.progress import run_page
from flows.reconcile import reconcile
from flows.remote.exchange import exchange
from flows.remote.order import FLOW, HEARD, ORIGIN, RUNTIME, SAID, Order
from flows.request import Request
from flows.run_context import RunContext, log_file, progress_file
from flows.stage_task import StageOutcome, run_stages
from flows.workspace import in_worktree

#: Seconds between two signs of life.
HEARTBEAT_S = 3.0


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
    one_line_errors()
    root, log = Path.cwd(), get_run_logger().info
    keep_output(root)
    wait_out_outages()
    try:
        with _fetched(root, order):
            record = this_run.begin(root, f"{order.stage} of {order.run}")
            reconcile(root, log, record)
            with in_worktree(root, Request(name=order.run, ref=order.commit), log) as workspace:
                this_run.works_in(workspace.root, workspace.kept)
                run = RunContext(
                    root=workspace.root, checkout=root, name=order.run, attempt=record.attempt_id, kept=workspace.kept,
                    stages=frozenset({order.stage}), stale=frozenset({order.stage}),
                    mlflow_run_id=order.mlflow_run_id if os.environ.get("MLFLOW_TRACKING_URI") else None,
                )  # fmt: skip
                outcome = _run(run, order, log)
    except AlignError as error:
        get_run_logger().error("%s", error)
        return Failed(message=f"{error} (on {socket.gethostname()})")
    return Completed(message="its result is in DVC's remote", name="Completed" if outcome.ran else "Cached")


def _run(run: RunContext, order: Order, log: Callable[[str], None]) -> StageOutcome:
    asked = next((each for each in read_dag(run.root) if each.name == order.stage), None)
    if asked is None:
        raise ConfigError(f"{order.commit[:10]}: dvc.yaml has no stage '{order.stage}'")
    log_file(run.root).parent.mkdir(parents=True, exist_ok=True)
    log_file(run.root).write_bytes(b"")
    run_id = UUID(str(runtime.flow_run.id))
    with run_page(run_id) as page, _heartbeat(run_id, progress_file(run.root)):
        page.watch(run.root, [asked])
        exchange("accept", run, log, order.stage, order.remote)
        [outcome] = run_stages([asked], run)
        exchange("give", run, log, order.stage)
        _show_runtime(run_id, run, asked)
    return outcome


@contextmanager
def _fetched(root: Path, order: Order) -> Iterator[None]:
    """Has the order's commit in the repository, under a ref of this process alone.

    Raises:
        DataError: the git remote cannot be reached, or does not have it.
    """
    mine = f"{order.ref}-{os.getpid()}"
    quiet = {"GIT_TERMINAL_PROMPT": "0"}  # nobody is there to type a password
    git(root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", ORIGIN, f"+{order.ref}:{mine}", env=quiet)
    try:
        if resolve(root, mine) != order.commit:
            raise DataError(f"{ORIGIN}: {order.ref} is another commit than it says")
        yield
    finally:
        with suppress(AlignError):
            git(root, "update-ref", "-d", mine)


@contextmanager
def _heartbeat(run_id: UUID, progress: Path) -> Iterator[None]:
    """Tells the head again and again that this process lives, and what the stage says. See `flows.remote.send`."""
    done = threading.Event()

    def beat() -> None:
        number = 0
        while not done.wait(HEARTBEAT_S):
            with suppress(Exception), get_client(sync_client=True) as client:  # another client after each failure
                while not done.wait(HEARTBEAT_S):
                    number += 1
                    said = progress.read_text("utf-8", "replace") if progress.exists() else ""
                    client.update_flow_run_labels(run_id, {HEARD: number, SAID: said})

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


def _show_runtime(run_id: UUID, run: RunContext, asked: Stage) -> None:
    """Gives the head what the stage measured of itself: no out of DVC has it."""
    folder = run.root / below_root(load_params(run.root / PARAMS_FILE).values["paths"])["runtime"]
    file = folder / f"{asked.name}.json"
    if file.exists():
        with get_client(sync_client=True) as client:
            client.update_flow_run_labels(run_id, {RUNTIME: json.dumps(json.loads(file.read_text("utf-8")))})
