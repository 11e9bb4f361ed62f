"""A stage as a Prefect task: `dvc repro -s STAGE` in a supervised child.

The task's state says what DVC did: Cached (nothing to do, or outs taken from DVC's cache), Completed (the command ran)
or Failed.

Obeys what people ask of a run in Prefect's UI while a stage works: to suspend it, or to cancel it. Suspending works
like cancelling: the stage ends, with its checkpoint, and "Resume" starts the run again, which takes finished stages
from the cache and resumes training. Prefect itself would wait until the stage has ended by itself. The worker does the
cancelling; a run whose worker has died obeys by itself.
"""

from __future__ import annotations

import base64
import fnmatch
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import Any
from uuid import UUID

from PIL import Image
from prefect import get_run_logger, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Abort, Pause
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Completed, Suspended
from pydantic import BaseModel, ConfigDict

from align.display.report import reported
from align.display.visible import fenced_markdown, plain_markdown
from flows.checkout.failed_runs import in_kept_folder
from flows.dag import Stage
from flows.mlflow_run import log_stage
from flows.tasks import stop
from flows.tasks.child_process import CommandError, Watch, is_warning, run_supervised
from flows.tasks.outages import end_without_waiting
from flows.tasks.run_context import RunContext, child_environment, log_file, progress_file

#: The flow run that a worker started this process for.
STARTED_AS = "PREFECT__FLOW_RUN_ID"
#: A worker acts on a cancelled run within seconds.
WORKER_ACTS_WITHIN_S = 15.0
_CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)
#: Crashed while this process lives: the head of its run was killed on another machine, and `flows.reconcile` set this
#: state.
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
        """Makes the states of task, sub-flow and run say that a stage was ended. Returns what the task is to raise."""
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(self._run)
            cancelled = run.state is not None and run.state.type in _CANCELLED  # a paused run may have ended meanwhile
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
            if run.state and run.state.is_crashed():
                return Abort(message)  # its state says why
            if not resumable:
                client.set_flow_run_state(self._run, Cancelled(message=message), force=True)
                return Abort(message)
            # a blocking pause would be "resumed" as a running process, which has ended. After the time that the UI asks
            # for, five minutes by default, Prefect fails the run, although the UI promises that it resumes it
            state: State[Any] = Suspended(message=message)
            if run.state and run.state.type in (StateType.PAUSED, StateType.FAILED):  # unless it was resumed meanwhile
                client.set_flow_run_state(self._run, state, force=True)
            return Pause(state=state)


#: Of the main plot; a larger one is only named. Prefect keeps an artifact as a row of its database, and publishes no
#: event of more than 1.5 MB, in base64.
MAX_PICTURE_BYTES = 1_000_000
#: Larger pictures get 256 colours, which makes them a third to a quarter as large.
_MANY_COLOURS_BYTES = 100_000
#: Hints that DVC prints for people at a prompt; the log leaves them out.
CHATTER = ("To track the changes with git", "git add ", "To enable auto staging", "dvc config ", "Use `dvc push`")


class StageOutcome(BaseModel):
    """The result of a stage; `ran` is False if it came from the cache, and what warned then is in an earlier log."""

    model_config = ConfigDict(frozen=True)
    stage: str
    ran: bool
    warnings: tuple[str, ...] = ()


@task(task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: Stage, run: RunContext) -> State[StageOutcome]:
    """Runs one stage, or takes it from the cache, and shows its report as an artifact, even if it failed.

    Raises:
        CommandError: the stage failed; the message is the line with its reason.
    """
    logger = get_run_logger()
    ran, lines = False, list[str]()
    if stage.name in run.stale:

        def log(line: str) -> None:
            if not line.removeprefix("\\t").lstrip().startswith(CHATTER):
                lines.append(line)
                logger.log(WARNING if is_warning(line) else INFO, "%s", line)
                with log_file(run.root).open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")

        try:
            stop.require_running()
            _run(stage, run, log)
        except stop.Stopped as ended:
            said = [line.removeprefix("align: error: ") for line in lines if line.startswith("align: error: ")]
            raise stop.Stopped(f"{ended} in {stage.name}{f' ({said[-1]})' if said else ''}") from None
        except CommandError as error:
            failure = in_kept_folder(str(error), run, str(Path(stage.report).parent))
            if has_report := did_run(stage.name, lines):
                log_stage(stage, run)
            _publish(stage, run, failure, has_report=has_report)
            raise CommandError(failure) from None
        ran = did_run(stage.name, lines)
    log_stage(stage, run)
    _publish(stage, run)
    outcome = StageOutcome(stage=stage.name, ran=ran, warnings=tuple(filter(is_warning, lines)))
    if ran:
        return Completed(message=stage.description, data=outcome)
    logger.info("%s: cached", stage.name)
    return Completed(name="Cached", message="the same bytes are in DVC's cache", data=outcome)


def _run(stage: Stage, run: RunContext, log: Callable[[str], None]) -> None:
    """Runs DVC on a stage. If the run is suspended or cancelled meanwhile, the stage is ended, with its checkpoint."""
    pull = ["--pull"] if stage.name in run.pulled else []
    command = ["dvc", "repro", *pull, "--single-item", stage.name]
    state = RunState()
    progress_file(run.root).unlink(missing_ok=True)  # left by the stage before: the processes of this one append to it
    try:
        with Watch(state.asked_to_end) as watch:
            run_supervised(command, cwd=run.root, env=child_environment(run), log=log, watch=watch)
    except (stop.Stopped, Exception):
        raise
    except (Pause, Abort) as ended:
        raise state.show_end(ended, stage.name) from None
    except BaseException:  # ended by a signal, which must not wait for a server
        end_without_waiting()
        raise


def run_stages(stages: Iterable[Stage], run: RunContext) -> list[StageOutcome]:
    """Runs stages one after another, since DVC runs one at a time in a checkout; edges as in dvc.yaml."""
    states: dict[str, State[StageOutcome]] = {}
    for stage in stages:
        upstream = [states[name] for name in stage.upstream if name in states]
        states[stage.name] = run_stage(stage, run, wait_for=upstream)  # raises if the stage failed
    return [outcome for state in states.values() if isinstance(outcome := state.result(), StageOutcome)]


def did_run(name: str, lines: Sequence[str]) -> bool:
    """Whether DVC ran the stage's command, according to its output."""
    return any(line.startswith(f"Running stage '{name}'") for line in lines)


def _publish(stage: Stage, run: RunContext, failure: str | None = None, *, has_report: bool = True) -> None:
    """Shows a stage's report as an artifact. DVC removes the last run's report first, if it starts the command."""
    report = run.root / stage.report
    page, _, view = (run.mlflow_page or "").partition("?")
    address = f"{page}/artifacts/reports/{report.name}/report.html?{view}" if page else None
    create_markdown_artifact(
        report_markdown(report if has_report else None, stage, failure, address),
        key=f"{stage.name.replace('_', '-')}-report",
        description=stage.description,
    )


def report_markdown(report: Path | None, stage: Stage, failure: str | None = None, address: str | None = None) -> str:
    """A stage's report for the UI: the verdict, the main figures, where the whole is, the main plot, then all metrics.

    Args:
        report: its folder; None: it wrote none.
        stage: that wrote it.
        failure: why the stage failed.
        address: of its report.html.
    """
    parts = [f"# {stage.name}", stage.description]
    if failure is not None:
        parts.append(f"Failed:\n\n{fenced_markdown([failure])}")
    if report is None:
        return "\n\n".join(parts)
    metrics = reported(report, "metrics.json")
    parts += [_verdict(report, metrics)] if failure is None else []
    parts += [_main_figures(stage.figures, metrics)] if metrics and stage.figures else []
    if (report / "report.html").exists():
        where = f"[Open report.html]({address})" if address else f"`{stage.report}/report.html` in the run's files"
        parts.append(f"{where}: all tables and pictures")
    for picture in sorted(report.glob("*.png"), key=lambda one: (one.name != stage.plot, one.name))[:1]:
        data = _for_a_page(picture)
        large = f"{picture.name}: {len(data) / 1e6:.1f} MB, see {report.name}/ in the checkout"
        shown = f"![{picture.stem}](data:image/png;base64,{base64.b64encode(data).decode()})"
        parts.append(large if len(data) > MAX_PICTURE_BYTES else shown)
    rows = [f"| {plain_markdown(name)} | {_number(value)} |" for name, value in metrics.items()]
    parts += ["## All metrics", "\n".join(["| metric | value |", "|---|---:|", *rows])] if rows else []
    return "\n\n".join(parts)


def _verdict(report: Path, metrics: dict[str, Any]) -> str:
    """What a stage that ended well says in a line: a gate by its verdict, a measurement by what chance would give."""
    if verdict := reported(report, "verdict.json"):
        return "**Passed**" if verdict["passed"] else "**Refused**"
    measured = [name for name in metrics if {f"{name}/low", f"{name}/chance"} <= metrics.keys()]
    above = sum(metrics[f"{name}/low"] > metrics[f"{name}/chance"] for name in measured)
    said = f"{above} of {len(measured)} measures are above chance, by the lower end of their 95 % interval"
    return f"**{said if measured else 'Complete'}**"


def _main_figures(patterns: Sequence[str], metrics: dict[str, Any]) -> str:
    """A row for each pattern: of the metrics that it matches, the least nested, and then the first by name."""
    rows = []
    for found in filter(None, (fnmatch.filter(metrics, pattern) for pattern in patterns)):
        name = min(found, key=lambda one: (one.count("/"), one))
        number = "{:.1%}".format if f"{name}/low" in metrics else _number
        values = [number(metrics[key]) if key in metrics else "" for key in (name, f"{name}/chance")]
        rows.append([plain_markdown(name), *values])
    width = 3 if any(row[-1] for row in rows) else 2
    head = [["main figures", "", "by chance"], ["---", "---:", "---:"]]
    return "\n".join(f"| {' | '.join(row[:width])} |" for row in [*head, *rows])


def _for_a_page(picture: Path) -> bytes:
    """The file, or its picture in 256 colours."""
    data = picture.read_bytes()
    if len(data) <= _MANY_COLOURS_BYTES:
        return data
    made = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(made, "png", optimize=True)
    return made.getvalue()


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\.?0+$", "", f"{value:.4f}")
