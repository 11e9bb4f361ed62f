"""The state of a run: what a step changes, what a checkpoint holds of it, and what it begins with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.utils._pytree import tree_map_only

from align.config.recipe import Recipe
from align.errors import NonFiniteLossError
from align.model.dual_encoder import DualEncoder
from align.training.global_loss import new_estimates
from align.training.lamb import Lamb, parameter_groups
from align.training.ranks.buckets import gathered
from align.training.ranks.sharding import distributed_like
from align.training.step import Gradients
from align.training.words import Words

#: One row of metrics: `step`, and the metrics measured at it.
MetricRow = dict[str, float | int]
#: Step -> what `align.training.validation.validate` found for some texts.
Found = dict[int, list[list[int]]]
#: The part of a state that a checkpoint holds as it is.
_PLAIN = ("rows", "found", "losses", "gradient_norms", "skipped")


class StepValues(NamedTuple):
    """What a step did; its norm is not finite if float16 overflowed, and the weights stayed."""

    step: int
    loss: float
    norm: float
    temperature: float


@dataclass
class State:
    """What training changes. Random numbers and the position in the data are functions of the step: whole steps done.

    Attributes:
        unread: loss, norm and temperature (before and after) of each step since the last `read`, on the device.
        losses, gradient_norms: of each step since the last row; a skipped step has no norm.
        words: while the first steps predict words; None afterwards, and in a run without such steps.
        scaler: for float16, whose gradients overflow now and then; `skipped` steps has it left out since the last row.
        estimates: of the global loss (`align.training.global_loss`), alike on all ranks.
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
    words: Words | None = None
    scaler: GradScaler | None = None
    skipped: int = 0
    estimates: Tensor | None = None

    @property
    def scaling(self) -> tuple[GradScaler, Lamb] | None:
        """What scales the loss of float16, and whose gradients it divides again; None in other precisions."""
        return None if self.scaler is None else (self.scaler, self.optimiser)

    def set_learning_rates(self) -> None:
        """Sets the rates of the next update."""
        rate, late = (learning_rate_at(self.step, self.recipe, late=late) for late in (False, True))
        self.optimiser.set_learning_rate(rate, late)
        if self.words is not None:
            self.words.optimiser.set_learning_rate(rate)

    def update(self, gradients: Gradients) -> None:
        """Changes the weights by the gradients. With float16 the host waits: if they overflowed, no weight changes."""
        before = self.model.temperature.detach()
        if self.words is not None:
            self.words.optimiser.step()
        if self.scaler is None:
            self.optimiser.step()
        else:
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.skipped += self.scaler.get_scale() < scale
            if self.scaler.get_scale() < 1:
                why = f"the gradients overflow with a loss scale of {scale:g}"
                raise self._diverged(why, self.step + 1, float(before))
        self.step += 1
        if self.step == self.recipe.num_words_steps:
            self.words = None
        self.unread.append(torch.stack([one.detach().float() for one in (*gradients, before, self.model.temperature)]))

    def read(self) -> list[StepValues]:
        """The values of the steps since the last time; here the host waits for the device.

        Raises NonFiniteLossError: a loss or, except for float16, a norm is inf or NaN. What follows is never saved,
        since nothing is written before its steps are read.
        """
        rows = torch.stack(self.unread).tolist() if self.unread else []
        self.unread.clear()
        values = []
        for step, (loss, norm, before, after) in enumerate(rows, self.step - len(rows) + 1):
            if not math.isfinite(loss):
                raise self._diverged(f"the loss is {loss}", step, before)
            self.losses.append(loss)
            if math.isfinite(norm):
                self.gradient_norms.append(norm)
            elif self.scaler is None:
                raise self._diverged(f"the norm of the gradients is {norm}", step, before)
            values.append(StepValues(step, loss, norm, after))
        return values

    def means(self) -> MetricRow:
        """Means since the last row; begins the next one."""
        kept = {"train/loss": self.losses, "train/gradient_norm": self.gradient_norms}
        row: MetricRow = {name: sum(values) / len(values) for name, values in kept.items() if values}
        if self.scaler is not None:
            row |= {"train/loss_scale": self.scaler.get_scale(), "train/skipped_steps": self.skipped}
        self.losses, self.gradient_norms, self.skipped = [], [], 0
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
        """Plain values and tensors, which training keeps changing; sharded ones whole, and on the leading rank only."""
        values: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN}
        values |= {"model": dict(self.model.state_dict()), "optimiser": self.optimiser.state_dict()}
        values |= {"scaler": None if self.scaler is None else self.scaler.state_dict()}
        values |= {"words": None if self.words is None else self.words.saved()}
        values |= {"estimates": self.estimates}
        return gathered(values)  # type: ignore[no-any-return]  # as deep as what it is given

    @torch.no_grad()
    def load(self, saved: dict[str, Any]) -> None:
        """Restores a checkpoint of whole tensors, of which this rank keeps its rows."""
        for name, own in self.model.state_dict().items():
            own.copy_(distributed_like(saved["model"][name], own))
        params = [param for group in self.optimiser.param_groups for param in group["params"]]
        states = saved["optimiser"]["state"].items()
        moments = {each: tree_map_only(Tensor, partial(distributed_like, like=params[each]), of) for each, of in states}
        self.optimiser.load_state_dict(saved["optimiser"] | {"state": moments})
        for name in ("step", *_PLAIN):
            setattr(self, name, saved[name])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        if self.words is not None:
            self.words.load(saved["words"])
        if self.estimates is not None:
            self.estimates.copy_(saved["estimates"])


def new_state(model: DualEncoder, recipe: Recipe, num_samples: int = 0) -> State:
    """A model and its optimiser at step 0, to be trained on so many samples, which only the global loss asks for."""
    optimiser = Lamb(
        parameter_groups(model, recipe),
        weight_decay=recipe.weight_decay, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps,
    )  # fmt: skip
    scaler = GradScaler(model.log_temperature.device.type) if recipe.precision == "float16" else None
    estimates = new_estimates(recipe, num_samples, model.log_temperature.device)
    return State(recipe, model, optimiser, scaler=scaler, estimates=estimates)


def best_step(rows: Sequence[MetricRow], metric: str | None) -> int | None:
    """The step with the highest value of a metric, the first of equal ones; None if no row has it."""
    best = max((row for row in rows if metric in row), key=lambda row: row[str(metric)], default=None)
    return None if best is None else int(best["step"])


def learning_rate_at(step: int, recipe: Recipe, *, late: bool = False) -> float:
    """The rate of the update after `step` completed ones.

    It rises to `learning_rate` over `warmup_steps`, then falls to 0 at `num_steps` along a line or half a cosine. After
    a first phase that predicts words, what is `late` (all but the image tower) has a warm-up of its own; until its end
    the image tower's rate stays what it is.
    """
    peak, num_steps, first = recipe.learning_rate, recipe.num_steps, recipe.num_words_steps
    trained = step - first if late else step
    if trained < recipe.warmup_steps:
        return peak * max(0, trained + 1) / max(1, recipe.warmup_steps)
    warm = first + recipe.warmup_steps
    left = (num_steps - max(step, warm)) / max(1, num_steps - warm)
    return peak * (left if recipe.schedule == "linear" else (1.0 - math.cos(math.pi * left)) / 2.0)
