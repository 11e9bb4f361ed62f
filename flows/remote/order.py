"""What the head of a run asks of a worker: one stage, at one commit."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from align.config import Params
from align.config.infrastructure import DEFAULT_POOL, ClusterConfig
from align.config.params import did_you_mean
from align.errors import ConfigError
from flows.dag import Stage

#: The flow that a worker runs; each work pool has a deployment of it with the pool's name.
FLOW = "stage"
#: The git remote that the machines share.
ORIGIN = "origin"
#: Where commits are on it while a stage runs elsewhere.
REFS = "refs/align/stages"
#: Labels of the worker's flow run: a number that grows while it lives, what the stage says (`Said`), and
#: what it measured of itself (`runtime/`), which is not an out. The head sets one, too: this flow run no longer counts.
HEARD, SAID, RUNTIME, GIVEN_UP = "align.heard", "align.said", "align.runtime", "align.given_up"
#: The longest text that a label takes.
MAX_LABEL_BYTES = 1 << 16


class Order(BaseModel):
    """One stage to run. Holds no secret: Prefect records it. Credentials are in each machine's environment.

    Attributes:
        stage: its name.
        run: the name of the run.
        commit: a snapshot of the head's checkout, with dvc.lock; `ref` has it on the git remote.
        remote: the address of DVC's remote, which must be that of the worker, too.
        reads: path -> hash of what the stage reads, which has to be the same there.
        mlflow_run_id: the run that training logs into while it works.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str = Field(pattern=r"^\w+$", max_length=100)
    run: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=200)
    commit: str = Field(pattern=r"^[0-9a-f]{40,64}$")
    remote: str = Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", max_length=1000)
    reads: dict[str, str]
    mlflow_run_id: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")

    @property
    def ref(self) -> str:
        """Where the commit is on the git remote while the stage runs."""
        return f"{REFS}/{self.commit}"


def pools(params: Params, dag: Sequence[Stage]) -> dict[str, str]:
    """Stage -> the work pool that runs it, for stages that do not run on this machine.

    Args:
        params: of the run; those of an older revision may have no pools.
        dag: all stages.

    Raises:
        ConfigError: there is no such stage.
    """
    chosen: dict[str, str | None] = params.values.get(ClusterConfig.section, {}).get("pools") or {}
    names = [stage.name for stage in dag]
    if unknown := [key for key in chosen if key not in (DEFAULT_POOL, *names)]:
        raise ConfigError(f"cluster.pools: there is no stage '{unknown[0]}'{did_you_mean(unknown[0], names)}")
    found = {name: chosen.get(name, chosen.get(DEFAULT_POOL)) for name in names}
    return {name: pool for name, pool in found.items() if pool is not None}
