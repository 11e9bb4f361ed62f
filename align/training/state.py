"""The state of a run at a step, and the part of it that a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from align.config.recipe import Recipe
from align.model.dual_encoder import DualEncoder
from align.training.lamb import Lamb, parameter_groups
from align.training.ranks.buckets import gathered
from align.training.ranks.sharding import distributed_like, is_sharded

#: One row of metrics: `step`, and the metrics measured at it.
MetricRow = dict[str, float | int]
#: Step -> what `align.training.health.validate` found for some texts.
Found = dict[int, list[list[int]]]


@dataclass
class State:
    """What training changes. Random numbers and the position in the data are functions of the step.

    Attributes:
        step: whole steps done.
        rows: metric rows so far.
        found: at each validation so far, for people.
        losses, gradient_norms: of each step since the last row; a skipped step has no norm.
        scaler: for float16, whose gradients overflow now and then; None in other precisions.
        skipped: steps that it has left out since the last row.
    """

    model: DualEncoder
    optimiser: Lamb
    step: int = 0
    rows: list[MetricRow] = field(default_factory=list)
    found: Found = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    scaler: GradScaler | None = None
    skipped: int = 0

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded: then all ranks have to save, and run the towers, together."""
        return is_sharded(self.model)

    def saved(self) -> dict[str, Any]:
        """Plain values and tensors. The tensors are not copies, so training keeps changing them.

        Sharded tensors are gathered on the leading rank only, so that any number of ranks can resume from them.
        """
        values: dict[str, Any] = gathered(
            {
                "model": dict(self.model.state_dict()),
                "optimiser": self.optimiser.state_dict(),
                "rows": self.rows,
                "found": self.found,
                "losses": self.losses,
                "gradient_norms": self.gradient_norms,
                "scaler": None if self.scaler is None else self.scaler.state_dict(),
                "skipped": self.skipped,
            }
        )
        return values

    @torch.no_grad()
    def load(self, saved: dict[str, Any]) -> None:
        """Restores a checkpoint of whole tensors, of which this rank keeps its rows."""
        for name, own in self.model.state_dict().items():
            own.copy_(distributed_like(saved["model"][name], own))
        params = [param for group in self.optimiser.param_groups for param in group["params"]]
        moments = {
            number: {
                name: distributed_like(value, params[number]) if isinstance(value, Tensor) else value
                for name, value in of_one.items()
            }
            for number, of_one in saved["optimiser"]["state"].items()
        }
        self.optimiser.load_state_dict(saved["optimiser"] | {"state": moments})
        self.step, self.rows, self.found = saved["step"], saved["rows"], saved["found"]
        self.losses, self.gradient_norms = saved["losses"], saved["gradient_norms"]
        self.skipped = saved["skipped"]
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])


def new_state(model: DualEncoder, recipe: Recipe) -> State:
    """A model and its optimiser at step 0."""
    optimiser = Lamb(
        parameter_groups(model, recipe),
        weight_decay=recipe.weight_decay, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps,
    )  # fmt: skip
    scaler = GradScaler(model.log_temperature.device.type) if recipe.precision == "float16" else None
    return State(model, optimiser, scaler=scaler)
