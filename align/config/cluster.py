"""The machines that train together or run single stages. Never DVC params: they change where and how fast, not what."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from align.config.params import Section

#: The key of `pools` for every stage that it does not name.
DEFAULT = "default"
#: Prefect's names of work pools, without characters that have a meaning in a shell or an address.
_Pool = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)]


class ClusterConfig(Section):
    """The machines of a training job, which all run the same command, each with its own `node_rank`; and work pools."""

    section: ClassVar[str] = "cluster"
    changes_bytes: ClassVar[bool] = False

    num_nodes: int = Field(ge=1)
    #: The number of this machine. Machine 0 leads: it writes checkpoints, reports and the model.
    node_rank: int = Field(ge=0)
    #: HOST:PORT at which the others reach node 0.
    rendezvous: Annotated[str, Field(pattern=r"^[^:\s]+:\d+$")] | None
    #: The most restarts from the last checkpoint after a rank died.
    max_restarts: int = Field(ge=0)
    #: Seconds that machines wait for each other.
    patience_s: int = Field(ge=1)
    #: Stage of dvc.yaml, or `default` -> the work pool whose workers run it on their machines; None: this machine does.
    pools: dict[str, _Pool | None]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.node_rank >= self.num_nodes:
            raise ValueError(f"node_rank {self.node_rank} must be less than num_nodes {self.num_nodes}")
        if self.num_nodes > 1 and self.rendezvous is None:
            raise ValueError("several nodes need rendezvous: HOST:PORT of node 0")
        return self
