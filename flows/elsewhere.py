"""Training on another machine: a worker of another work pool runs it as a part of the run, in a clone of its own.

The machines share git's remote `origin`, DVC's default remote and Prefect's server, and no disk:

1. here: what training reads goes to DVC's remote and a snapshot of the checkout to git's, and Prefect starts the flow
   `part` in the pool (`train_elsewhere`);
2. there: `dvc repro --pull` of each stage takes both, and `dvc push --run-cache` gives the results (`part`);
3. here: `dvc repro --pull` of the same stages finds the results in DVC's run cache, with the same bytes.

DVC alone decides what a result is. Prefect alone knows whether the part waits, works, is cancelled or has crashed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed
from pydantic import Field

from align.config.infrastructure import ClusterConfig
from align.config.params import parse_yaml
from align.errors import AlignError, DataError, one_line
from align.project.declared import CODE_FILE
from align.services.dvc.commands import write_code
from align.services.dvc.repository import settings
from align.services.git import git, network_git
from flows.checkout.run_branch import snapshot
from flows.checkout.worktree import in_worktree
from flows.dag import Selection, Stage, is_part, read_dag
from flows.ended import repair
from flows.pages.progress import Progress
from flows.request import Request
from flows.run.context import RunContext, child_environment, log_file, progress_file
from flows.run.record import end_record, in_progress
from flows.run.supervised import CommandError, run_supervised
from flows.stage import run_stages

#: The flow that a worker runs; each work pool has a deployment of it with the pool's name.
FLOW = "part"
#: The git remote that the machines share, and where a commit is on it while a part runs.
ORIGIN, REFS = "origin", "refs/align"


def sent(run: RunContext) -> list[Stage]:
    """The stages of a run that a worker of `cluster.training_pool` has to run: those of training that are stale."""
    if _pool(run) is None:
        return []
    return [stage for stage in run.chosen.stages if stage.name in run.stale and is_part(stage, "training")]


def _pool(run: RunContext) -> str | None:
    pool: str | None = run.params.values.get(ClusterConfig.section, {}).get("training_pool")
    return pool


def require_reachable(run: RunContext) -> None:
    """Checks, before anything runs, that the pool exists and that both remotes are set. Sends nothing.

    Raises:
        DataError: one is missing; the message says which, and what to do.
    """
    if not sent(run):
        return
    pool = _pool(run)
    where = f"cluster.training_pool {pool}"
    if not PREFECT_API_URL.value():
        raise DataError(f"{where}: its worker is told by Prefect's server: `make up`, or set PREFECT_API_URL")
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(f"{FLOW}/{pool}")
    except ObjectNotFound:
        fix = f"on its machine, make worker POOL={pool}"
        raise DataError(f"{where}: no worker was ever started for it: {fix}") from None
    try:
        network_git(run.root, "ls-remote", "--quiet", ORIGIN, "HEAD")
    except DataError as error:
        raise DataError(f"{where}: its worker gets the code from git's remote '{ORIGIN}': {one_line(error)}") from None
    known = settings(run.root)
    if known["remote"] is None:
        raise DataError(f"{where}: DVC has no default remote: `dvc remote default NAME` (docs/scale.md)")
    if Path(os.path.normpath(known["remotes"].get(known["remote"], ""))).is_relative_to(run.checkout):
        raise DataError(
            f"{where}: DVC's remote '{known['remote']}' is a folder of this checkout, which no other machine sees: "
            "make one in a bucket the default (docs/scale.md)"
        )


def train_elsewhere(run: RunContext) -> RunContext:
    """Has a worker of the pool train, and waits for its end, as long as that takes.

    Returns:
        The run, which knows that the results come from DVC's remote.

    Raises:
        CommandError: git or DVC refuses, or the part failed, crashed or was cancelled; the message is one line.
    """
    stages, pool, log = sent(run), _pool(run), get_run_logger().info
    if not stages:
        return run
    commit = snapshot(run.root, f"training of run {run.name}")
    if read := _read(run, stages, commit):  # without a name DVC would push everything
        run_supervised(["dvc", "push", *read], cwd=run.root, env=child_environment(run), log=log)
    code = _code(run.root)
    asked = {stage.name: code.get(stage.name, "") for stage in stages}
    log("%s: in work pool '%s'; without a worker there (make worker POOL=%s) they wait", ", ".join(asked), pool, pool)
    try:
        network_git(run.root, "push", "--quiet", ORIGIN, f"{commit}:{REFS}/{commit}")
        ended = run_deployment(
            f"{FLOW}/{pool}", flow_run_name=f"training of {run.name} in {pool}",
            parameters={
                "name": run.name, "commit": commit, "stages": asked, "mlflow_run_id": run.mlflow_run_id or "",
            },
        )  # fmt: skip
    finally:
        with suppress(AlignError):  # it is in nobody's way there
            network_git(run.root, "push", "--quiet", ORIGIN, f":{REFS}/{commit}")
    assert isinstance(ended, FlowRun) and ended.state is not None
    if not ended.state.is_completed():
        how = ended.state.message or ended.state.name
        again = ". Retry of this run resumes at its checkpoint" if ended.state.is_crashed() else ""
        raise CommandError(f"training in work pool '{pool}': {how}; see flow run {ended.name} ({ended.id}){again}")
    return run.model_copy(update={"pulled": frozenset(asked)})


def _read(run: RunContext, stages: list[Stage], commit: str) -> list[str]:
    """What the stages read that neither they make nor git has: DVC keeps it, or refuses to push it."""
    made = [out for stage in stages for out in stage.outs]
    read = dict.fromkeys(dep for stage in stages for dep in stage.deps if "://" not in dep)
    kept = [dep for dep in read if not any(f"{dep}/".startswith(f"{out}/") for out in made)]
    return [dep for dep in kept if not git(run.root, "ls-tree", commit, "--", dep)]


def _code(root: Path) -> dict[str, str]:
    """Stage -> the digest of its code, as code.yaml has it; empty where no stage writes that file."""
    file = root / CODE_FILE
    return dict(parse_yaml(file.read_text("utf-8")) or {}) if file.is_file() else {}


@flow(name=FLOW, on_completion=[end_record], on_failure=[end_record])
def part(
    name: Annotated[str, Field(max_length=200)],
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40,64}$")],
    stages: dict[str, str],
    mlflow_run_id: Annotated[str, Field(pattern=r"^([0-9a-f]{32})?$")] = "",
) -> State[Any]:
    """Runs stages of another machine's run, and gives their results to DVC's remote. The run starts it; not for people.

    Args:
        name: of the run.
        commit: a snapshot of its checkout, with dvc.lock; git's remote has it.
        stages: name -> the digest of its code there, which has to be the same here.
        mlflow_run_id: the run that training logs into while it works, if MLFLOW_TRACKING_URI is set here.

    Returns:
        Completed, or Failed with the line that has the reason and this machine's name.
    """
    root, log = Path.cwd(), get_run_logger().info
    try:
        with in_progress(f"training of {name}"):
            repair(root, log)
            network_git(root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", ORIGIN, f"{REFS}/{commit}")
            with in_worktree(root, Request(name=name, ref=commit), log, inputs=False) as workspace:
                dag = read_dag(workspace.root)
                run = RunContext(
                    root=workspace.root, checkout=root, name=name,
                    chosen=Selection(dag, tuple(stage for stage in dag if stage.name in stages)),
                    stale=frozenset(stages), pulled=frozenset(stages),
                    mlflow_run_id=mlflow_run_id if mlflow_run_id and os.environ.get("MLFLOW_TRACKING_URI") else None,
                )  # fmt: skip
                _run(run, stages, log)
    except (AlignError, OSError) as error:  # such as a full disk
        get_run_logger().error("%s", error)
        return Failed(message=f"{error} (on {socket.gethostname()})")
    return Completed(message="the results are in DVC's remote")


def _run(run: RunContext, code: dict[str, str], log: Callable[[str], None]) -> None:
    env = child_environment(run)
    write_code(run.root, env)
    here = _code(run.root)
    if other := [stage for stage, digest in code.items() if here.get(stage, "") != digest]:
        raise DataError(f"another align is installed here: its code of stage {other[0]} is not that of the run")
    log_file(run.root).parent.mkdir(parents=True, exist_ok=True)
    with Progress(progress_file(run.root), run.chosen.stages):
        run_stages(run.chosen.stages, run)
    run_supervised(["dvc", "push", "--run-cache", *code], cwd=run.root, env=env, log=log)
