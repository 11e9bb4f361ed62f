"""A stage as a Prefect task: `dvc repro -s STAGE` in a supervised child, its state named after what DVC did.

Cached (nothing to do, or outs taken from DVC's cache), Completed (the command ran) or Failed.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict

from flows.dag import Stage
from flows.process import run_supervised

#: Pictures beyond this stay out of the artifact: Prefect keeps artifacts as rows of its database.
MAX_PICTURE_BYTES = 1_000_000


#: What DVC says to people at a prompt; in a log it only hides the rest.
CHATTER = ("To track the changes with git", "git add ", "To enable auto staging", "dvc config ", "Use `dvc push`")


class Work(BaseModel):
    """What the sub-flows of one run share.

    Attributes:
        root: the checkout that they work in.
        stale: names of the stages that may have to run; the others are known to be cached.
        dirty: the checkout is a snapshot of changes that nobody committed.
        mlflow_run_id: the run that training logs into as it goes, if one is open.
        mlflow_tracking_uri: of the store with that run; None leaves the choice to `align`.
    """

    model_config = ConfigDict(frozen=True)
    root: Path
    stale: frozenset[str]
    dirty: bool = False
    mlflow_run_id: str | None = None
    mlflow_tracking_uri: str | None = None


class Outcome(BaseModel):
    """What became of a stage: `ran` is False where it came from the cache."""

    model_config = ConfigDict(frozen=True)
    stage: str
    ran: bool


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the store of the checkout `root`, absolute, so that a worktree logs into it too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db"


def child_environment(work: Work) -> dict[str, str]:
    """The environment of a command in the checkout: its own code comes before the installed one."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(work.root), env.get("PYTHONPATH", "")]))
    env["PYTHONUNBUFFERED"] = "1"
    if work.mlflow_tracking_uri:
        env["MLFLOW_TRACKING_URI"] = work.mlflow_tracking_uri
    if work.mlflow_run_id:
        env["MLFLOW_RUN_ID"] = work.mlflow_run_id
    return env


@task(task_run_name="{stage.name}", cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: Stage, work: Work) -> State[Outcome]:
    """Runs one stage, or takes it from the cache, and shows its report as an artifact.

    Raises:
        CommandError: the stage failed; the message is the line in which it says why.
    """
    logger = get_run_logger()
    outcome = Outcome(stage=stage.name, ran=False)
    if stage.name in work.stale:
        lines = run_supervised(
            ["dvc", "repro", "--single-item", stage.name],
            cwd=work.root,
            env=child_environment(work),
            log=lambda line: None if line.lstrip().startswith(CHATTER) else logger.info("%s", line),
        )
        outcome = Outcome(stage=stage.name, ran=did_run(stage.name, lines))
    create_markdown_artifact(
        report_markdown(work.root / stage.report, stage),
        key=f"{stage.name.replace('_', '-')}-report",
        description=stage.description,
    )
    if outcome.ran:
        return Completed(message=stage.description, data=outcome)
    logger.info("%s: cached", stage.name)
    return Completed(name="Cached", message="the same bytes are in DVC's cache", data=outcome)


def run_stages(stages: Iterable[Stage], work: Work) -> list[Outcome]:
    """Runs stages one after another, since DVC works on one at a time in one checkout; edges as in dvc.yaml."""
    states: dict[str, State[Outcome]] = {}
    for stage in stages:
        upstream = [states[name] for name in stage.upstream if name in states]
        states[stage.name] = run_stage(stage, work, wait_for=upstream)  # raises where the stage failed
    return [outcome for state in states.values() if isinstance(outcome := state.result(), Outcome)]


def did_run(name: str, lines: Sequence[str]) -> bool:
    """Whether DVC ran the stage's command, by its own words."""
    return any(line.startswith(f"Running stage '{name}'") for line in lines)


def report_markdown(report: Path, stage: Stage) -> str:
    """A stage's report for the UI: metrics as a table, pictures embedded."""
    parts = [f"# {stage.name}", stage.description]
    if (report / "metrics.json").exists():
        metrics: dict[str, Any] = json.loads((report / "metrics.json").read_text("utf-8"))
        rows = [f"| {name} | {_number(value)} |" for name, value in metrics.items()]
        parts.append("\n".join(["| metric | value |", "|---|---:|", *rows]))
    for picture in sorted(report.glob("*.png")):
        data = picture.read_bytes()
        if len(data) <= MAX_PICTURE_BYTES:
            parts.append(f"![{picture.stem}](data:image/png;base64,{base64.b64encode(data).decode()})")
        else:
            parts.append(f"{picture.name}: {len(data) / 1e6:.1f} MB, see {report.name}/ in the checkout")
    return "\n\n".join(parts)


def _number(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else re.sub(r"\.?0+$", "", f"{value:.4f}")
