"""The pipeline as people see it: data, training, release. What depends on what is defined in dvc.yaml alone.

`align run` works in the user's checkout, under a lock. A deployed run, or one with a revision or overrides, works in a
git worktree of its own, so that a click in the UI never touches a checkout that somebody edits.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client

from align.config import load_params
from align.config.register import RegisterConfig
from align.console import say, show
from align.errors import AlignError
from align.run import running_services
from align.services.tracking import Status, Tracker
from flows import run_branch
from flows.child_process import run_supervised
from flows.dag import Stage, read_dag, stale
from flows.log import one_line_errors
from flows.plan import make_plan, read_states
from flows.progress import RunPage, run_page
from flows.request import Request, settled
from flows.run_context import RunContext, child_environment, log_file
from flows.selection import Selection, require_made, select
from flows.speeds import keep_speeds
from flows.stage_task import StageOutcome, run_stages
from flows.summary import summarise
from flows.unknown_outs import require_known
from flows.workspace import Workspace, in_checkout, in_worktree

#: The stage that makes what is registered.
PACKAGE = "package"
NOT_REGISTERED = "nothing, since this run packages no model"


@flow(flow_run_name="{request.name}")
def pipeline(request: Request = Request()) -> str:  # noqa: B008 - frozen; the form shows its fields
    """Runs every stage, records the result as branch run/<name>, registers the model, and returns a summary.

    Raises:
        AlignError: a stage failed, or the request cannot be run; the message says why.
    """
    one_line_errors()
    root, log = Path.cwd(), get_run_logger().info
    request = settled(root, request)  # first of all: a wrong value of the last stage costs nothing
    run_branch.check_name(root, request.name)
    here = runtime.deployment.id is None and request.in_place
    with in_checkout(root, request.name, log) if here else in_worktree(root, request, log) as workspace:
        return _run(root, workspace, request)


@flow(flow_run_name="data")
def data(run: RunContext) -> list[StageOutcome]:
    """From the raw web to shards that passed the quality gate, and a vocabulary."""
    return run_stages(_stages(run, "data"), run)


@flow(flow_run_name="training")
def training(run: RunContext, before: list[StageOutcome]) -> list[StageOutcome]:
    """Pre-training, fine-tuning, evaluation. Returns the outcomes `before`, followed by those of its stages."""
    return [*before, *run_stages(_stages(run, "training"), run)]


@flow(flow_run_name="release")
def release(
    run: RunContext, name: str, before: list[StageOutcome], registers: bool = True
) -> tuple[list[StageOutcome], str, str]:
    """Packages and indexes the model, records the run in git, and registers the model if this run packages it.

    Returns:
        The outcomes `before`, followed by those of its stages; the commit of run/<name>; the last line of `align
        register`.
    """
    outcomes = [*before, *run_stages(_stages(run, "release"), run)]
    commit = record(run, name)
    return outcomes, commit, register(run, commit, outcomes) if registers else NOT_REGISTERED


@task(task_run_name="record", cache_policy=NO_CACHE)
def record(run: RunContext, name: str) -> str:
    """Writes branch run/<name>: the code, the parameters and dvc.lock. Returns its commit."""
    commit = run_branch.record(run.root, name, f"run {name}{' (dirty)' if run.dirty else ''}")
    get_run_logger().info("branch run/%s is %s", name, commit[:10])
    return commit


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(run: RunContext, commit: str, outcomes: list[StageOutcome]) -> str:
    """Completes the MLflow run and registers the model; the same model is the same version."""
    command = ["align", "register", "--revision", commit]
    for outcome in outcomes:
        command += [] if outcome.ran else ["--cached-stage", outcome.stage]
    env = child_environment(run) | {"ALIGN_FLOW_RUN_ID": str(runtime.flow_run.root_flow_run_id)}
    return run_supervised(command, cwd=run.root, env=env, log=get_run_logger().info)[-1]


def _run(root: Path, workspace: Workspace, request: Request) -> str:
    if workspace.dirty:
        _tag_run("dirty")
    since, name = time.time(), request.name
    chosen = select(read_dag(workspace.root), request.only, request.from_stage, request.to_stage)
    stages = chosen.stages
    run = RunContext(
        root=workspace.root, checkout=root, dirty=workspace.dirty, kept=workspace.kept,
        stages=frozenset(stage.name for stage in stages),
    )  # fmt: skip
    log_file(run.root).parent.mkdir(parents=True, exist_ok=True)
    log_file(run.root).write_bytes(b"")  # of this run alone
    states = read_states(run)
    status = json.dumps(states.status)
    run = run.model_copy(update={"stale": stale(stages, status)})
    plan = make_plan(run, name, chosen, states)
    create_markdown_artifact(plan.markdown(), key="plan", description=f"what run {name} will do")
    require_made(chosen, states.would_run)
    plan.require_possible()
    if run.root == run.checkout:
        require_known(stages, run, status)
    if chosen.left_out:
        get_run_logger().info("not run: %s", ", ".join(chosen.left_out))
    try:
        with run_page(UUID(str(runtime.flow_run.id))) as page:
            page.watch(run.root, stages)
            return _run_stages(run, request, chosen, page)
    finally:
        keep_speeds(run, run.stale, since)


def _run_stages(run: RunContext, request: Request, chosen: Selection, page: RunPage) -> str:
    name = request.name
    page.links["code"] = f"{request.ref or 'HEAD'}{' (dirty)' if run.dirty else ''}"
    outcomes = data(run) if _stages(run, "data") else []
    with _open_mlflow_run(run, chosen.stages, name) as (run_id, address):
        if run_id:
            page.links["MLflow"] = address or f"run {run_id} in mlflow.db; `make up` shows it"
            run = run.model_copy(update={"mlflow_run_id": run_id})
        if _stages(run, "training"):
            outcomes = training(run, outcomes)
        if _stages(run, "release"):
            outcomes, commit, version = release(run, name, outcomes, registers=PACKAGE not in chosen.left_out)
        else:
            commit, version = record(run, name), NOT_REGISTERED
    page.links["branch"], page.links["registered"] = f"run/{name} ({commit[:10]})", version
    text = summarise(
        run.root, chosen.stages, outcomes, name=name, commit=commit, registered=version, here=run.root == run.checkout
    )
    create_markdown_artifact(f"```\n{text}\n```", key="summary", description=f"run {name}")
    return text


@contextmanager
def _open_mlflow_run(run: RunContext, stages: Sequence[Stage], name: str) -> Iterator[tuple[str | None, str | None]]:
    """Starts an MLflow run that training logs into while it runs, and gives its id and the address of its page.

    Both are None if no training stage has to run; the address, if no server shows the run.

    The flow starts it, so the flow ends it: finished, failed or killed.
    """
    if not any(stage.flow == "training" and stage.name in run.stale for stage in stages):
        yield None, None
        return
    tracker = Tracker(run.mlflow_tracking_uri)
    experiment = load_params(run.root / "params.yaml").section(RegisterConfig).experiment
    run_id = tracker.start_run(experiment, name)
    status: Status = "KILLED"
    try:
        yield run_id, tracker.page(run_id, running_services(run.checkout).get("mlflow", {}).get("url"))
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracker.end_run(run_id, status=status)


def _stages(run: RunContext, name: str) -> list[Stage]:
    """The stages of a run that a sub-flow shows."""
    return [stage for stage in read_dag(run.root) if stage.flow == name and stage.name in run.stages]


def _tag_run(tag: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, tags={*runtime.flow_run.tags, tag})


def main(argv: Sequence[str] | None = None) -> int:
    """The program that `align run` becomes. Returns 0, 1 after an AlignError, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="align run")
    parser.add_argument("request", type=Request.model_validate_json, help="as JSON")
    request: Request = parser.parse_args(argv).request
    # Prefect passes SIGTERM on when the flow has ended. An exception, not a plain exit, ends its temporary server too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        request = settled(Path.cwd(), request)
        run_branch.check_name(Path.cwd(), request.name)
        summary = pipeline(request)
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except KeyboardInterrupt:
        say("align: interrupted; finished stages are cached, and training resumes from its checkpoint")
        return 130
    show("", *summary.split("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
