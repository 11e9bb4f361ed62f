"""The pipeline as people see it: data, training, release. What depends on what is defined in dvc.yaml alone.

`align run` works in the user's checkout, under a lock. A deployed run, or one with a revision or overrides, works in a
git worktree of its own, so that a click in the UI never touches a checkout that somebody edits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort
from prefect.settings import PREFECT_API_URL

from align.display.console import say, show
from align.display.visible import fenced_markdown
from align.errors import AlignError
from align.local_stack import LOGIN_FILE
from align.release.registration.shown import VERDICT
from align.web import HOST
from flows.checkout import run_branch
from flows.checkout.run_branch import Recorded
from flows.checkout.worktree import in_checkout, in_worktree
from flows.dag import Stage
from flows.elsewhere import require_reachable, train_elsewhere
from flows.ended import repair
from flows.mlflow_run import MlflowRun, mlflow_run, record_refused
from flows.pages.index import index_file, write_index
from flows.pages.progress import Progress, put_markdown
from flows.pages.summary import result, summarise
from flows.plan import make_plan
from flows.request import Request, Settled, settled
from flows.run import stop
from flows.run.context import RunContext, StageOutcome, child_environment, log_file, progress_file
from flows.run.record import conclude, end_record, in_progress, note, tag
from flows.run.supervised import last_line, run_supervised
from flows.speeds import expected_s
from flows.stage import run_stages
from flows.states import read_states, require_known

#: Warnings of stages that the summary repeats: the last ones.
MAX_WARNINGS = 10
#: The stage that makes what is registered.
PACKAGE = "package"
NOT_REGISTERED = ["nothing, since this run packages no model"]


@flow(on_completion=[end_record], on_failure=[end_record])
def pipeline(request: Request = Request()) -> str:  # noqa: B008 - frozen; the form shows its fields
    """Runs every stage, records the result as a branch, registers the model, returns a summary.

    Raises:
        AlignError: a stage failed, or the request cannot be run; the message says why.
    """
    root, log = Path.cwd(), get_run_logger().info
    with in_progress(request.name):
        name = name_of(root, request)
        opened: MlflowRun | None = None
        try:
            # before anything is made: a wrong value of the last stage costs nothing
            asked = settled(root, request.model_copy(update={"name": name}))
            note(name=name)
            repair(root, log)
            here = runtime.deployment.id is None and asked.in_place
            with in_checkout(root, name, log) if here else in_worktree(root, asked, log) as workspace:
                if workspace.root != root:
                    note(worktree=str(workspace.root))
                run = RunContext(
                    root=workspace.root, checkout=root, name=name, dirty=workspace.dirty, tags=asked.tags or {}
                )
                run = run.with_stages(asked)
                with mlflow_run(run) as opened:
                    run = run.model_copy(update={"mlflow_run_id": opened.run_id, "mlflow_page": opened.page})
                    return _run(run, opened, asked.ref or "HEAD")
        except AlignError as error:
            if opened is None:
                record_refused(root, name, error)
            raise


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


@flow(flow_run_name="data of {run.name}")
def data(run: RunContext) -> list[StageOutcome]:
    """From the raw web to shards that passed the quality gate, and a vocabulary."""
    return run_stages(_stages(run, "data"), run)


@flow(flow_run_name="training of {run.name}")
def training(run: RunContext, before: list[StageOutcome]) -> list[StageOutcome]:
    """Pre-training, fine-tuning, evaluation. Returns the outcomes `before`, followed by those of its stages."""
    return [*before, *run_stages(_stages(run, "training"), run)]


@flow(flow_run_name="release of {run.name}")
def release(run: RunContext, before: list[StageOutcome]) -> tuple[list[StageOutcome], Recorded, list[str]]:
    """Packages and indexes the model, records the run in git, and registers the model if this run packages it.

    Returns:
        The outcomes `before`, followed by those of its stages; the run's branch; what `align register` said: its last
        line, and its verdict.
    """
    outcomes = [*before, *run_stages(_stages(run, "release"), run)]
    recorded = record(run)
    registers = PACKAGE not in run.chosen.left_out
    return outcomes, recorded, register(run, recorded.commit, outcomes) if registers else NOT_REGISTERED


@task(task_run_name="record", cache_policy=NO_CACHE)
def record(run: RunContext) -> Recorded:
    """Records the code, the parameters and dvc.lock as branch run/<name>, or its next number, and tags the flow run."""
    recorded = run_branch.record(run.root, run.name, f"run {run.name}{' (dirty)' if run.dirty else ''}")
    what = "is" if recorded.is_new else "has the same result, and stays:"
    get_run_logger().info("branch run/%s %s %s", recorded.name, what, recorded.commit[:10])
    tag(f"run/{recorded.name}")
    return recorded


@task(task_run_name="register", cache_policy=NO_CACHE)
def register(run: RunContext, commit: str, outcomes: list[StageOutcome]) -> list[str]:
    """Completes the MLflow run and registers the model; the same model is the same version."""
    command = ["align", "register", "--revision", commit]
    for outcome in outcomes:
        command += [] if outcome.ran else ["--cached-stage", outcome.stage]
    env = child_environment(run) | {"ALIGN_FLOW_RUN_ID": str(runtime.flow_run.root_flow_run_id)}
    lines = run_supervised(command, cwd=run.root, env=env, log=get_run_logger().info)
    return [last_line(lines), *(line for line in lines if line.startswith(VERDICT))]


def _run(run: RunContext, opened: MlflowRun, ref: str) -> str:
    if run.dirty:
        tag("dirty")
    log_file(run.root).parent.mkdir(parents=True, exist_ok=True)
    log_file(run.root).write_bytes(b"")  # of this run only
    index_file(run).unlink(missing_ok=True)  # until this run is complete, no page says that these are its reports
    states = read_states(run)
    run = run.model_copy(update={"stale": frozenset(name for name, one in states.items() if one.state == "stale")})
    plan = make_plan(run, states)
    put_markdown("plan", f"what run {run.name} will do", plan.markdown())
    plan.require_possible()
    require_reachable(run)
    if run.root == run.checkout:
        require_known(run, states)
    if run.chosen.left_out:
        get_run_logger().info("not run: %s", ", ".join(run.chosen.left_out))
    expected = expected_s(run, run.stale)
    with Progress(progress_file(run.root), run.chosen.stages, expected) as page, stop.raise_if_stopped():
        page.links["code"] = f"{ref}{' (dirty)' if run.dirty else ''}"
        page.links["MLflow"] = opened.page or f"run {opened.run_id} in mlflow.db; `make up` shows it"
        if opened.comparison:
            page.links["beside other runs"] = opened.comparison
        return _run_stages(run, opened, page)


def _run_stages(run: RunContext, opened: MlflowRun, page: Progress) -> str:
    outcomes: list[StageOutcome] = []
    if _stages(run, "data"):
        outcomes = data(run)
    if _stages(run, "training"):
        run = train_elsewhere(run)
        outcomes = training(run, outcomes)
    if _stages(run, "release"):
        outcomes, recorded, (version, *verdict) = release(run, outcomes)
    else:
        recorded, (version, *verdict) = record(run), NOT_REGISTERED
    opened.recorded(recorded.name, recorded.commit, [one.stage for one in outcomes if not one.ran])
    page.links["branch"] = f"run/{recorded.name} ({recorded.commit[:10]})"
    page.links["registered"] = version
    told = [*[line for one in outcomes for line in one.warnings][-MAX_WARNINGS:], *verdict]
    page.links |= {"to read": "; ".join(told)} if told else {}
    write_index(run, recorded, "; ".join([version, *verdict]))
    conclude(f"Completed: {result(run, recorded, [version, *verdict])}")
    text = summarise(run, outcomes, recorded, version, told)
    put_markdown("summary", f"run {run.name}", fenced_markdown(text.split("\n")))
    return text


def _stages(run: RunContext, flow: str) -> list[Stage]:
    """The stages of a run that a sub-flow shows."""
    return [stage for stage in run.chosen.stages if stage.flow == flow]


def exit_code(run: Callable[[], str]) -> int:
    """Shows the flow's summary. Returns 0, or `stop.exit_code` of a run that was ended.

    Raises:
        AlignError: the run failed.
    """
    try:
        with stop.in_order(), stop.raise_if_stopped():
            if (url := PREFECT_API_URL.value() or "").startswith(f"http://{HOST}:"):
                say(f"Prefect at {url.removesuffix('/api')} shows the run; its login is the line in {LOGIN_FILE}")
            summary = run()
    except Abort as ended:
        kept = ". Finished stages are cached: the same command goes on from there, training from its checkpoint"
        say(f"align: {ended}{kept if stop.is_stopping() else ''}")
        return stop.exit_code()
    show("", *summary.split("\n"))
    return 0


def main(argv: Sequence[str]) -> int:
    """The program that `align run` becomes; takes a Settled request as JSON. Returns its `exit_code`."""
    request = Settled.model_validate_json(argv[0])
    return exit_code(lambda: pipeline.with_options(flow_run_name=str(request.name))(request))
