"""What the tasks of one run share, and the environment of the commands that they start."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class RunContext(BaseModel):
    """What the sub-flows and tasks of one run share.

    Attributes:
        root: the checkout that they work in.
        stale: names of the stages that may have to run; the others are known to be cached.
        dirty: the checkout is a snapshot with uncommitted changes.
        mlflow_run_id: the run that training logs into while it runs, if one is open.
        mlflow_tracking_uri: of the MLflow store with that run; None leaves the choice to `align`.
    """

    model_config = ConfigDict(frozen=True)
    root: Path
    stale: frozenset[str] = frozenset()
    dirty: bool = False
    mlflow_run_id: str | None = None
    mlflow_tracking_uri: str | None = None


def tracking_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or the store of the checkout `root`, absolute, so that a worktree logs into it too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root}/mlflow.db"


def child_environment(run: RunContext) -> dict[str, str]:
    """The environment of a command in the checkout: the checkout's code is imported, not an installed copy."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.root), env.get("PYTHONPATH", "")]))
    env["PYTHONUNBUFFERED"] = "1"
    if run.mlflow_tracking_uri:
        env["MLFLOW_TRACKING_URI"] = run.mlflow_tracking_uri
    if run.mlflow_run_id:
        env["MLFLOW_RUN_ID"] = run.mlflow_run_id
    return env
