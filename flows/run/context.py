"""What the tasks of one run share, and the environment of the commands that they start."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from align.config import Params, load_params
from align.config.params import PARAMS_FILE
from align.config.paths import below_root
from align.display.console import PROGRESS_VARIABLE
from align.durable.run_records import PROGRESS
from flows.dag import Selection, read_dag
from flows.request import Request

#: What runs keep in a checkout (locks, worktrees, logs) is here; git ignores it.
STATE = Path(".align")


class RunContext(BaseModel):
    """What the sub-flows and tasks of one run share.

    Attributes:
        root: the checkout that they work in.
        checkout: the user's, where the flow runs; the same, or the one that `root` is a worktree of.
        name: of the run.
        chosen: its stages.
        stale: names of the stages that may have to run; the others are known to be cached.
        pulled: names of the stages whose deps and results come from DVC's remote (`flows.elsewhere`).
        dirty: the checkout is a snapshot with uncommitted changes.
        mlflow_run_id: the run that training logs into while it runs, if one is open.
        mlflow_page: its address, if a server shows it.
        tags: of its run in MLflow.
    """

    model_config = ConfigDict(frozen=True)
    root: Path
    checkout: Path
    name: str = ""
    chosen: Selection = Field(default=Selection(), exclude=True)  # Prefect need not record all of dvc.yaml
    stale: frozenset[str] = frozenset()
    pulled: frozenset[str] = frozenset()
    dirty: bool = False
    mlflow_run_id: str | None = None
    mlflow_page: str | None = None
    tags: dict[str, str] = {}

    @cached_property
    def params(self) -> Params:
        """The parameters of the checkout that the run works in."""
        return load_params(self.root / PARAMS_FILE)

    def with_stages(self, request: Request) -> RunContext:
        """The run with its stages; after this nobody reads dvc.yaml. Until it has its lock, the checkout may change."""
        return self.model_copy(update={"chosen": request.select(read_dag(self.root, self.params))})

    @property
    def runtime(self) -> Path:
        """Where its stages write what they measure of themselves."""
        return self.root / str(below_root(self.params.values["paths"])["runtime"])

    @property
    def mlflow_tracking_uri(self) -> str:
        """MLFLOW_TRACKING_URI, or the file of the user's checkout, which a worktree logs into, too.

        A property, since Prefect records what it passes to flows and tasks, and an address may hold a password.
        """
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.checkout}/mlflow.db"


class StageOutcome(BaseModel):
    """The result of a stage; `ran` is False if it came from the cache, and what warned then is in an earlier log."""

    model_config = ConfigDict(frozen=True)
    stage: str
    ran: bool
    warnings: tuple[str, ...] = ()


def log_file(root: Path) -> Path:
    """Where a run that works in `root` writes what its stages print."""
    return root / STATE / "logs" / "run.log"


def progress_file(root: Path) -> Path:
    """Where a stage that runs in `root` writes its progress."""
    return root / PROGRESS


def child_environment(run: RunContext) -> dict[str, str]:
    """The environment of a command in the checkout: the checkout's code is imported, not an installed copy."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.root), env.get("PYTHONPATH", "")]))
    env["PYTHONUNBUFFERED"] = "1"
    env[PROGRESS_VARIABLE] = str(progress_file(run.root))
    env["ALIGN_ROOT"] = str(run.checkout)  # MLflow's files lie beside its database
    env["MLFLOW_TRACKING_URI"] = run.mlflow_tracking_uri
    if run.mlflow_run_id:
        env["MLFLOW_RUN_ID"] = run.mlflow_run_id
    return env
