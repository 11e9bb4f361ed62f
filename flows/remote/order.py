"""What the head of a run asks of a worker: one stage, at one commit."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from align.config import Params
from align.config.cluster import DEFAULT, ClusterConfig
from align.config.params import did_you_mean
from align.errors import ConfigError

#: The flow that a worker runs; each work pool has a deployment of it with the pool's name.
FLOW = "stage"
#: The git remote that the machines share.
ORIGIN = "origin"
#: Labels of the worker's flow run: a number that grows while it lives, what the stage says (`flows.progress.Said`), and
#: what it measured of itself (`runtime/`), which is no out.
HEARD, SAID, RUNTIME = "align.heard", "align.said", "align.runtime"


class Order(BaseModel):
    """One stage to run. Holds no secret: Prefect records it. Credentials are in each machine's environment.

    Attributes:
        stage: its name.
        run: the name of the run.
        commit: a snapshot of the head's checkout, with dvc.lock; `ref` has it on the git remote.
        remote: the address of DVC's remote, which has to be the worker's, too.
        mlflow_run_id: the run that training logs into while it works.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str = Field(pattern=r"^\w+$")
    run: str
    commit: str = Field(pattern=r"^[0-9a-f]{40,64}$")
    remote: str
    mlflow_run_id: str | None = None

    @property
    def ref(self) -> str:
        """Where the commit is on the git remote while the stage runs."""
        return f"refs/align/stages/{self.commit}"


def pools(params: Params, stages: Iterable[str]) -> dict[str, str]:
    """Stage -> the work pool that runs it, of those that do not run on this machine.

    Args:
        params: of the run; those of an older revision may know no pools.
        stages: names of all stages.

    Raises:
        ConfigError: there is no such stage.
    """
    chosen: dict[str, str | None] = params.values.get(ClusterConfig.section, {}).get("pools") or {}
    names = list(stages)
    if unknown := [key for key in chosen if key not in (DEFAULT, *names)]:
        raise ConfigError(f"cluster.pools: there is no stage '{unknown[0]}'{did_you_mean(unknown[0], names)}")
    found = {name: chosen.get(name, chosen.get(DEFAULT)) for name in names}
    return {name: pool for name, pool in found.items() if pool is not None}
