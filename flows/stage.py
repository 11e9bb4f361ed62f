"""A stage as a Prefect task: `dvc repro -s STAGE` in a supervised child.

The task's state says what DVC did: Cached (nothing to do, or outs taken from DVC's cache), Completed (the command ran)
or Failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from logging import INFO, WARNING
from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.dag import Stage
from flows.mlflow_run import log_stage
from flows.pages.report import report_markdown
from flows.run import stop
from flows.run.context import RunContext, StageOutcome, child_environment, log_file, progress_file
from flows.run.supervised import CommandError, is_warning, run_supervised
from flows.speeds import keep_speed

#: Hints that DVC prints for people at a prompt; the log leaves them out.
CHATTER = ("To track the changes with git", "git add ", "To enable auto staging", "dvc config ", "Use `dvc push`")


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

        began = time.monotonic()
        try:
            stop.require_running()
            _run(stage, run, log)
        except stop.Stopped as ended:
            said = [line.removeprefix("align: error: ") for line in lines if line.startswith("align: error: ")]
            raise stop.Stopped(f"{ended} in {stage.name}{f' ({said[-1]})' if said else ''}") from None
        except CommandError as error:
            failure = located(str(error), stage, run)
            if has_report := did_run(stage.name, lines):
                log_stage(stage, run)
            _publish(stage, run, failure, has_report=has_report)
            raise CommandError(failure) from None
        if ran := did_run(stage.name, lines):
            keep_speed(run, stage.name, time.monotonic() - began)
    log_stage(stage, run)
    _publish(stage, run)
    outcome = StageOutcome(stage=stage.name, ran=ran, warnings=tuple(filter(is_warning, lines)))
    if ran:
        return Completed(message=stage.description, data=outcome)
    logger.info("%s: cached", stage.name)
    return Completed(name="Cached", message="the same bytes are in DVC's cache", data=outcome)


def _run(stage: Stage, run: RunContext, log: Callable[[str], None]) -> None:
    pull = ["--pull"] if stage.name in run.pulled else []
    command = ["dvc", "repro", *pull, "--single-item", stage.name]
    progress_file(run.root).unlink(missing_ok=True)  # left by the stage before: the processes of this one append to it
    try:
        run_supervised(command, cwd=run.root, env=child_environment(run), log=log)
    except (stop.Stopped, Exception):
        raise
    except BaseException:  # ended by a signal, which must not wait for a server
        stop.end_without_waiting()
        raise


def located(message: str, stage: Stage, run: RunContext) -> str:
    """The message of a failed stage, which says where its paths begin if not in the user's checkout."""
    if run.root == run.checkout:
        return message
    folder = run.root.relative_to(run.checkout)
    accept = f"; --from {folder}/{Path(stage.report).parent}" if "align validate --accept" in message else ""
    return f"{message}{accept}; the reports and the log of this run are in {folder}"


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
