"""Retraining: the pipeline runs again if the source has changed since the champion's data; on a schedule, or by hand.

A look downloads nothing (`source_change`). The run is one like any other: it ends with a candidate, and a person
promotes it. prefect.yaml has the schedule, which is off until somebody switches it on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from align.config import Params, load_params
from align.config.params import PARAMS_FILE
from align.config.release import RegisterConfig, RetrainConfig
from align.display.visible import plain_markdown
from align.errors import DataError
from align.release.promotion.gates import REVISION
from align.services.git import git, identity
from align.services.tracking.registry import CHAMPION, PROMOTED, Version
from align.services.tracking.tracker import Tracker
from flows.alerts import alert
from flows.checkout.source_change import SourceChange, look
from flows.pipeline import exit_code, pipeline
from flows.request import Request
from flows.tasks.run_context import RunContext
from flows.tasks.this_run import end_record, in_progress


@flow(flow_run_name="retrain", on_completion=[end_record], on_failure=[end_record])
def retrain(name: str = "retrain") -> str:
    """Runs the pipeline if the source has changed by `retrain.min_change` since the champion's data.

    A list of `align pin` is made again first, and the run's branch has the list that it read. The checkout stays as it
    is.

    Args:
        name: of the run; the result becomes branch run/NAME.

    Returns:
        The run's summary, or a line that says how much has changed.

    Raises:
        AlignError: there is no champion, its run's source is not known, or the run failed.
    """
    root = Path.cwd()
    with in_progress():
        change, enough = look_at_source(root)
        text = f"{change.text}: {change.share:.1%} of the source changed"
        create_markdown_artifact(
            plain_markdown(text), key="source-change", description="the source since the champion's data"
        )
        if not enough:
            return f"{text}; not run again"
        get_run_logger().info("%s; running the pipeline", text)
        # HEAD by name: the run works in a worktree of its own, even if it is not a deployed one
        return pipeline(Request(name=name, ref=_with_pins(root, change) or "HEAD"))


@task(task_run_name="look at the source", cache_policy=NO_CACHE, persist_result=False)
def look_at_source(root: Path) -> tuple[SourceChange, bool]:
    """Compares the source with that of the champion's data; sends an alert if the champion is old.

    Returns:
        What changed, and whether that is enough to train again.
    """
    log = get_run_logger().info
    params = load_params(root / PARAMS_FILE)
    config, champion = params.section(RetrainConfig), _champion(root, params)
    if old := age_warning(champion, config.champion_days, datetime.now(UTC)):
        log(old)
        alert("champion_stale", old, log)
    if (revision := champion.tags.get(REVISION)) is None:
        raise DataError(f"{champion.name} version {champion.number} has no tag {REVISION}: its source is not known")
    change = look(root, revision, log)
    return change, change.share > 0 and change.share >= config.min_change


def age_warning(champion: Version, days: float | None, now: datetime) -> str | None:
    """A line if the champion was promoted more than `days` ago; None if not, or if the time is unknown."""
    try:
        promoted = datetime.fromisoformat(champion.tags.get(PROMOTED, ""))
    except ValueError:
        return None
    age = (now - promoted).total_seconds() / 86400
    if days is None or age <= days:
        return None
    return f"the champion, version {champion.number} of {champion.name}, was promoted {age:,.0f} days ago"


def _champion(root: Path, params: Params) -> Version:
    model = params.section(RegisterConfig).model_name
    champion = Tracker(RunContext(root=root, checkout=root).mlflow_tracking_uri).registry.version_at(model, CHAMPION)
    if champion is None:
        raise DataError(f"model '{model}' has no champion to compare the source with: run the pipeline, and promote it")
    return champion


def _with_pins(root: Path, change: SourceChange) -> str | None:
    """A commit on top of HEAD with the list of files as they are now; None if the checkout already has that list."""
    if change.pins is None:
        return None
    archive = str(load_params(root / PARAMS_FILE).values["paths"]["archive"])
    folder = Path(git(root, "rev-parse", "--path-format=absolute", "--git-dir"))
    fresh, index = folder / f"align-pins-{os.getpid()}", {"GIT_INDEX_FILE": str(folder / f"align-index-{os.getpid()}")}
    try:
        fresh.write_text(change.pins, "utf-8")
        blob = git(root, "hash-object", "-w", "--no-filters", "--", str(fresh))
        git(root, "read-tree", "HEAD", env=index)
        prefix = git(root, "rev-parse", "--show-prefix")
        git(
            root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{Path(archive).as_posix()}", env=index
        )
        tree = git(root, "write-tree", env=index)
    finally:
        fresh.unlink(missing_ok=True)
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
    return git(root, "commit-tree", tree, "-p", "HEAD", "-m", f"{archive}: its files now", env=identity(root))


def main(argv: Sequence[str] | None = None) -> int:
    """The program that `align run --if-changed` becomes. Returns its `exit_code`."""
    parser = argparse.ArgumentParser(prog="align run --if-changed")
    parser.add_argument("--name", required=True)
    args = parser.parse_args(argv)
    return exit_code(lambda: retrain(args.name))
