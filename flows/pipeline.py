"""The pipeline as people see it: data, training, release. What depends on what is dvc.yaml's affair alone.

Started by `align run` it works in place, under a lock. Deployed, or given a revision or overrides, it works in a git
worktree of its own, so that a click in the UI never touches a checkout that somebody edits.
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

from align.config import load_params
from align.config.register import RegisterConfig
from align.errors import AlignError
from align.services.tracking import Status, Tracker
from flows import checkout, places
from flows.dag import Stage, read_dag, stale
from flows.log import one_line_errors
from flows.places import Place, Request
from flows.process import run_supervised
from flows.stages import Outcome, Work, child_environment, run_stages, tracking_uri
from flows.summary import summarise


@flow(flow_run_name="{request.name}")
def pipeline(request: Request = Request()) -> str:  # noqa: B008 - frozen; the form shows its fields
    """Runs every stage, records the result as branch run/<name>, registers the model, and returns a summary.

    Raises:
        AlignError: a stage failed, or the request cannot be met; the message says why.
    """
    one_line_errors()
    root, log = Path.cwd(), get_run_logger().info
    checkout.check_name(root, request.name)
    in_place = runtime.deployment.id is None and not (request.ref or request.overrides or request.snapshot_dirty)
    with places.right_here(root, request.name, log) if in_place else places.of_its_own(root, request, log) as place:
        return _run(root, place, request.name)


@flow(flow_run_name="data")
def data(work: Work) -> list[Outcome]:
    """From the raw web to shards that passed the quality gate, and a vocabulary."""
    return run_stages(_stages(work, "data"), work)


@flow(flow_run_name="training")
def training(work: Work, before: list[Outcome]) -> list[Outcome]:
    """Pre-training, fine-tuning, evaluation. Returns the outcomes of its stages after those `before`."""
    return [*before, *run_stages(_stages(work, "training"), work)]


@flow(flow_run_name="release")
def release(work: Work, name: str, before: list[Outcome]) -> tuple[list[Outcome], str, str]:
    """Packages and indexes the model, records the run in git, and registers the model.

    Returns:
        The outcomes of its stages after those `before`, the commit of run/<name>, and what `align register` said.
    """
    outcomes = [*before, *run_stages(_stages(work, "release"), work)]
    commit = record(work, name)
    return outcomes, commit, register(work, commit, outcomes)


@task(task_run_name="record", cache_policy=NO_CACHE)
def record(work: Work, name: str) -> str:
    """Writes branch run/<name>: the code, the parameters and dvc.lock. Returns its commit."""
    commit = checkout.record(work.root, name, f"run {name}{' (dirty)' if work.dirty else ''}")
    get_run_logger().info("branch run/%s is %s", name, commit[:10])
    return commit


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(work: Work, commit: str, outcomes: list[Outcome]) -> str:
    """Completes the MLflow run and registers the model; the same model is the same version."""
    command = ["align", "register", "--revision", commit]
    for outcome in outcomes:
        command += [] if outcome.ran else ["--cached-stage", outcome.stage]
    env = child_environment(work) | {"ALIGN_FLOW_RUN_ID": str(runtime.flow_run.root_flow_run_id)}
    return run_supervised(command, cwd=work.root, env=env, log=get_run_logger().info)[-1]


def _run(root: Path, place: Place, name: str) -> str:
    if place.dirty:
        _tag_run("dirty")
    stages = read_dag(place.root)
    work = Work(
        root=place.root, dirty=place.dirty, stale=frozenset(), mlflow_tracking_uri=tracking_uri(root)
    )  # fmt: skip
    status = run_supervised(
        ["dvc", "status", "--json"], cwd=work.root, env=child_environment(work), log=get_run_logger().debug
    )
    work = work.model_copy(update={"stale": stale(stages, status[-1])})
    prepared = data(work)
    with _live_run(work, stages, name) as run_id:
        work = work.model_copy(update={"mlflow_run_id": run_id})
        trained = training(work, prepared)
        outcomes, commit, version = release(work, name, trained)
    text = summarise(work.root, stages, outcomes, name=name, commit=commit, registered=version, here=work.root == root)
    create_markdown_artifact(f"```\n{text}\n```", key="summary", description=f"run {name}")
    return text


@contextmanager
def _live_run(work: Work, stages: Sequence[Stage], name: str) -> Iterator[str | None]:
    """An MLflow run that training logs into as it goes; None where training has nothing to do.

    The flow began it, so the flow ends it: finished, failed or killed.
    """
    if not any(stage.flow == "training" and stage.name in work.stale for stage in stages):
        yield None
        return
    tracker = Tracker(work.mlflow_tracking_uri)
    experiment = load_params(work.root / "params.yaml").section(RegisterConfig).experiment
    run_id = tracker.start_run(experiment, name)
    status: Status = "KILLED"
    try:
        yield run_id
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracker.end_run(run_id, status=status)


def _stages(work: Work, name: str) -> list[Stage]:
    return [stage for stage in read_dag(work.root) if stage.flow == name]


def _tag_run(tag: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(runtime.flow_run.id, tags={*runtime.flow_run.tags, tag})


def main(argv: Sequence[str] | None = None) -> int:
    """What `align run` starts. Returns 0, 1 after an AlignError, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="align run")
    parser.add_argument("--name", required=True)
    parser.add_argument("--ref")
    parser.add_argument("--snapshot-dirty", action="store_true")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args(argv)
    # Prefect hands SIGTERM on when the flow has ended: by an exception, so that its temporary server ends too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        overrides = places.parse_overrides(Path.cwd(), args.overrides)
        checkout.check_name(Path.cwd(), args.name)
        summary = pipeline(
            Request(name=args.name, ref=args.ref, overrides=overrides, snapshot_dirty=args.snapshot_dirty)
        )
    except AlignError as error:
        print(f"align: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "align: interrupted; what is finished is cached, and training resumes from its checkpoint", file=sys.stderr
        )
        return 130
    print(f"\n{summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
