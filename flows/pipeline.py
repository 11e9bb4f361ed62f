"""The pipeline as people see it: data, training, release. What depends on what is defined in dvc.yaml alone.

`align run` works in the user's checkout, under a lock. A deployed run, or one with a revision or overrides, works in a
git worktree of its own, so that a click in the UI never touches a checkout that somebody edits.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort

from align.config import load_params
from align.config.register import RegisterConfig
from align.console import say, show
from align.errors import AlignError, ServiceError
from align.services.tracking import Status, Tracker
from flows import run_branch
from flows.child_process import run_supervised
from flows.dag import Stage, needed, read_dag, stale
from flows.log import one_line_errors
from flows.outages import keep_output, wait_out_outages
from flows.request import Request, parse_overrides
from flows.run_context import RunContext, child_environment, log_file
from flows.stage_task import StageOutcome, run_stages
from flows.summary import summarise
from flows.unknown_outs import require_known
from flows.workspace import Workspace, in_checkout, in_worktree


@flow(flow_run_name="{request.name}")
def pipeline(request: Request = Request()) -> str:  # noqa: B008 - frozen; the form shows its fields
    """Runs every stage, records the result as branch run/<name>, registers the model, and returns a summary.

    Raises:
        AlignError: a stage failed, or the request cannot be run; the message says why.
    """
    one_line_errors()
    root, log = Path.cwd(), get_run_logger().info
    keep_output(root)
    wait_out_outages()
    run_branch.check_name(root, request.name)
    here = runtime.deployment.id is None and not (request.ref or request.overrides or request.snapshot_dirty)
    with in_checkout(root, request.name, log) if here else in_worktree(root, request, log) as workspace:
        return _run(root, workspace, request.name)


@flow(flow_run_name="data")
def data(run: RunContext) -> list[StageOutcome]:
    """From the raw web to shards that passed the quality gate, and a vocabulary."""
    return run_stages(_stages(run, "data"), run)


@flow(flow_run_name="training")
def training(run: RunContext, before: list[StageOutcome]) -> list[StageOutcome]:
    """Pre-training, fine-tuning, evaluation. Returns the outcomes `before`, followed by those of its stages."""
    return [*before, *run_stages(_stages(run, "training"), run)]


@flow(flow_run_name="release")
def release(run: RunContext, name: str, before: list[StageOutcome]) -> tuple[list[StageOutcome], str, str]:
    """Packages and indexes the model, records the run in git, and registers the model.

    Returns:
        The outcomes `before`, followed by those of its stages; the commit of run/<name>; the last line of `align
        register`.
    """
    outcomes = [*before, *run_stages(_stages(run, "release"), run)]
    commit = record(run, name)
    return outcomes, commit, register(run, commit, outcomes)


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


def _run(root: Path, workspace: Workspace, name: str) -> str:
    if workspace.dirty:
        _tag_run("dirty")
    stages = _needed_stages(workspace.root)
    run = RunContext(root=workspace.root, checkout=root, dirty=workspace.dirty, kept=workspace.kept)
    log_file(run.root).parent.mkdir(parents=True, exist_ok=True)
    log_file(run.root).write_bytes(b"")  # of this run alone
    status = run_supervised(
        ["dvc", "status", "--json"], cwd=run.root, env=child_environment(run), log=get_run_logger().debug
    )
    run = run.model_copy(update={"stale": stale(stages, status[-1])})
    if run.root == run.checkout:
        require_known(stages, run, status[-1])
    if unused := [stage.name for stage in read_dag(run.root) if stage not in stages]:
        get_run_logger().info("not run, since the release reads nothing of theirs: %s", ", ".join(unused))
    prepared = data(run)
    with _open_mlflow_run(run, stages, name) as run_id:
        run = run.model_copy(update={"mlflow_run_id": run_id})
        trained = training(run, prepared)
        outcomes, commit, version = release(run, name, trained)
    text = summarise(run.root, stages, outcomes, name=name, commit=commit, registered=version, here=run.root == root)
    create_markdown_artifact(f"```\n{text}\n```", key="summary", description=f"run {name}")
    return text


@contextmanager
def _open_mlflow_run(run: RunContext, stages: Sequence[Stage], name: str) -> Iterator[str | None]:
    """Starts an MLflow run that training logs into while it runs; None if no training stage has to run.

    The flow starts it, so the flow ends it: finished, failed or killed.
    """
    if not any(stage.flow == "training" and stage.name in run.stale for stage in stages):
        yield None
        return
    tracker = Tracker(run.mlflow_tracking_uri)
    experiment = load_params(run.root / "params.yaml").section(RegisterConfig).experiment
    run_id = tracker.start_run(experiment, name)
    status: Status = "KILLED"
    try:
        yield run_id
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        try:
            tracker.end_run(run_id, status=status)
        except ServiceError as error:  # the run's own end says more
            get_run_logger().warning("MLflow's run %s could not be ended as %s: %s", run_id, status, error)


def _stages(run: RunContext, name: str) -> list[Stage]:
    return [stage for stage in _needed_stages(run.root) if stage.flow == name]


def _needed_stages(root: Path) -> list[Stage]:
    """The stages of a run: what the release is made of. A stage that nothing of it reads is left out."""
    stages = read_dag(root)
    names = needed(stages, "release")
    return [stage for stage in stages if stage.name in names]


def _tag_run(tag: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, tags={*runtime.flow_run.tags, tag})


def main(argv: Sequence[str] | None = None) -> int:
    """The program that `align run` becomes. Returns 0, 1 after an AlignError, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="align run")
    parser.add_argument("--name", required=True)
    parser.add_argument("--ref")
    parser.add_argument("--snapshot-dirty", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args(argv)
    # Prefect passes SIGTERM on when the flow has ended. An exception, not a plain exit, ends its temporary server too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        overrides = parse_overrides(Path.cwd(), args.overrides)
        run_branch.check_name(Path.cwd(), args.name)
        summary = pipeline(
            Request(name=args.name, ref=args.ref, overrides=overrides, snapshot_dirty=args.snapshot_dirty)
        )
    except AlignError as error:
        say(f"align: error: {error}")
        return 1
    except Abort as ended:  # in Prefect's UI
        say(f"align: {ended}")
        return 130
    except KeyboardInterrupt:
        say("align: interrupted; finished stages are cached, and training resumes from its checkpoint")
        return 130
    show("", *summary.split("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
