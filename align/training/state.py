"""The state of a run: what a step changes, what a checkpoint holds of it, and what it begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler

from align.config.recipe import Recipe
from align.errors import NonFiniteLossError
from align.model.dual_encoder import DualEncoder
from align.training.lamb import Lamb, parameter_groups
from align.training.ranks.buckets import gathered
from align.training.ranks.sharding import distributed_like, is_sharded
from align.training.step import Gradients

#: One row of metrics: `step`, and the metrics measured at it.
MetricRow = dict[str, float | int]
#: Step -> what `align.training.validation.validate` found for some texts.
Found = dict[int, list[list[int]]]


class StepValues(NamedTuple):
    """What a step did.

    Attributes:
        step: whole steps done with it.
        loss: of the global batch.
        norm: of the gradients before clipping; not finite if float16 overflowed, and the weights stayed.
        temperature: after the update.
    """

    step: int
    loss: float
    norm: float
    temperature: float


@dataclass
class State:
    """What training changes. Random numbers and the position in the data are functions of the step.

    Attributes:
        step: whole steps done.
        rows: metric rows so far.
        found: at each validation so far, for people.
        unread: loss, norm and temperature (before and after) of each step since the last `read`, on the device.
        losses, gradient_norms: of each step since the last row; a skipped step has no norm.
        scaler: for float16, whose gradients overflow now and then; None in other precisions.
        skipped: steps that it has left out since the last row.
    """

    recipe: Recipe
    model: DualEncoder
    optimiser: Lamb
    step: int = 0
    rows: list[MetricRow] = field(default_factory=list)
    found: Found = field(default_factory=dict)
    unread: list[Tensor] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    scaler: GradScaler | None = None
    skipped: int = 0

    @property
    def sharded(self) -> bool:
        """Whether weights are sharded: then all ranks run the towers, and gather what is saved, together."""
        return is_sharded(self.model)

    @property
    def scaling(self) -> tuple[GradScaler, Lamb] | None:
        """What scales the loss of float16, and whose gradients it divides again; None in other precisions."""
        return None if self.scaler is None else (self.scaler, self.optimiser)

    def update(self, gradients: Gradients) -> None:
        """Changes the weights by the gradients. With float16 the host waits: if they overflowed, no weight changes."""
        before = self.model.temperature.detach()
        if self.scaler is None:
            self.optimiser.step()
        else:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.skipped += self.scaler.get_scale() < scale
            if self.scaler.get_scale() < 1:
                what = f"the gradients overflow with a loss scale of {scale:g}"
                raise self._diverged(what, self.step + 1, float(before))
        self.step += 1
        self.unread.append(torch.stack([one.detach().float() for one in (*gradients, before, self.model.temperature)]))

    def read(self) -> list[StepValues]:
        """The values of the steps since the last time; here the host waits for the device.

        Raises:
            NonFiniteLossError: a loss or, except for float16, a norm is inf or NaN. What follows is never saved, since
                nothing is written before its steps are read.
        """
        rows = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        values = []
        for step, (loss, norm, before, after) in enumerate(rows, self.step - len(rows) + 1):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}", step, before)
            if not math.isfinite(norm) and self.scaler is None:
                raise self._diverged(f"the norm of the gradients is {norm}", step, before)
            self.losses.append(loss)
            if math.isfinite(norm):
                self.gradient_norms.append(norm)
            values.append(StepValues(step, loss, norm, after))
        return values

    def means(self) -> MetricRow:
        """Means since the last row; begins the next one."""
        row: MetricRow = {"train/loss": sum(self.losses) / len(self.losses)}
        if self.gradient_norms:
            row["train/gradient_norm"] = sum(self.gradient_norms) / len(self.gradient_norms)
        if self.scaler is not None:
            row |= {"train/loss_scale": self.scaler.get_scale(), "train/skipped_steps": self.skipped}
        self.losses.clear()
        self.gradient_norms.clear()
        self.skipped = 0
        return row

    def is_best(self) -> bool:
        """Whether this step's row has the best value of `best_metric` so far; of equal values the first is best."""
        return bool(self.rows) and self.rows[-1]["step"] == self.step == best_step(self.rows, self.recipe.best_metric)

    def _diverged(self, what: str, step: int, temperature: float) -> NonFiniteLossError:
        rate = learning_rate_at(step - 1, self.recipe)
        return NonFiniteLossError(
            f"{what} at step {step} (learning rate {rate:.3g}, temperature {temperature:.3g}); lower the learning "
            "rate; earlier checkpoints are kept"
        )

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
    return State(recipe, model, optimiser, scaler=scaler)


def best_step(rows: Sequence[MetricRow], metric: str | None) -> int | None:
    """The step with the highest value of a metric, the first of equal ones; None if no row has it."""
    best = max((row for row in rows if metric in row), key=lambda row: row[str(metric)], default=None)
    return None if best is None else int(best["step"])


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """The rate of the update after `step` completed ones.

    It rises to `learning_rate` over `warmup_steps`. Then it falls to 0 at `num_steps` along a line or along half a
    cosine.
    """
    peak, num_steps = recipe.learning_rate, recipe.num_steps
    if step < recipe.warmup_steps:
        return peak * (step + 1) / recipe.warmup_steps
    left = (num_steps - step) / max(1, num_steps - recipe.warmup_steps)
    return peak * (left if recipe.schedule == "linear" else (1.0 - math.cos(math.pi * left)) / 2.0)
