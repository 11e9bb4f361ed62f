"""What people see of a run while it trains: lines, warnings, and metrics in MLflow.

Speed and use of devices vary from run to run, so no report holds them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from align.config.model import ModelConfig
from align.display.console import PROGRESS_INTERVAL_S, say
from align.model.dual_encoder import DualEncoder
from align.training.batches.batch import Batch
from align.training.batches.loader import TrainLoader
from align.training.health import Health
from align.training.plan import TrainingPlan
from align.training.ranks.process_group import Ranks
from align.training.state import MetricRow, State, StepValues, learning_rate_at
from align.training.validation import possible_rank


class Watch:
    """Shows a run: a line every few seconds, warnings, and a row of metrics now and then. Only the leading rank speaks.

    Rows of metrics are added to the state. MFU is the share of the devices' peak that goes into the model: operations
    of one forward and one backward pass, of a locked tower forward only. Padding, and what is computed again to save
    memory (`micro_batch`, `gradient_checkpointing`), are no part of it.
    """

    def __init__(self, plan: TrainingPlan, ranks: Ranks, state: State, loader: TrainLoader) -> None:
        self._plan, self._ranks, self._state, self._loader = plan, ranks, state, loader
        recipe = self._recipe = plan.recipe
        self._device, self._first = plan.monitoring.health, state.step
        self._health = Health(recipe.section, learns_temperature=recipe.learn_temperature) if self._device else None
        self._start = self._shown = time.monotonic()
        self._paused_s, self._temperature = 0.0, 0.0
        self._tokens: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._operations: Operations | None = None

    def live(self) -> AbstractContextManager[Any]:
        """A block at whose end the live log has sent everything."""
        log = self._plan.monitoring.log
        return log if self._ranks.leads and isinstance(log, AbstractContextManager) else nullcontext()

    def step(self, batch: Batch) -> None:
        """Prints a line if the last one is some seconds old; for its values the host waits."""
        self._tokens = batch.tokens.lengths
        step, recipe, now = self._state.step, self._recipe, time.monotonic()
        if not self._ranks.leads or (now - self._shown < PROGRESS_INTERVAL_S and step != recipe.num_steps):
            return
        self._shown = now
        loss, _, _, temperature = self._state.unread[-1].tolist()
        speed = self.pairs_per_s()
        left = (recipe.num_steps - step) * recipe.batch_size / speed if speed else 0.0
        say(
            f"{recipe.section}: step {step:,} of {recipe.num_steps:,}, loss {loss:.3f}, temperature {temperature:.4f}, "
            f"learning rate {learning_rate_at(step - 1, recipe):.2e}, {speed:,.0f} pairs/s, {left:,.0f} s left",
            done=step, total=recipe.num_steps, per_s=speed / recipe.batch_size,
        )  # fmt: skip

    def read(self, values: Sequence[StepValues]) -> None:
        """Takes the values of the steps since the last time."""
        self._temperature = values[-1].temperature
        if self._ranks.leads and self._health is not None:
            for one in values:
                if math.isfinite(one.norm):  # or the step was left out
                    self._health.step(one.step, temperature=one.temperature, gradient_norm=one.norm)

    def row(self, means: MetricRow, measured: MetricRow) -> None:
        """Adds a row of metrics to the state, and sends it to the log with what varies from run to run.

        `means` are of the steps since the last row, empty if none is due; `measured` is empty without a validation.
        """
        if not self._ranks.leads or not (means or measured):
            return
        step, live = self._state.step, MetricRow()
        if means:
            rate = learning_rate_at(step - 1, self._recipe)
            means = means | {"train/temperature": self._temperature, "train/learning_rate": rate}
            live = self._use()
        row = means | measured
        self._state.rows.append({"step": step, **row})
        if self._health is not None:
            self._health.row(step, row | live, possible_rank(self._state.model, self._plan.data.val.num_images))
            live |= self._health.of_the_model()
        if self._plan.monitoring.log is not None:
            self._plan.monitoring.log({name: float(value) for name, value in (row | live).items()}, step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the block from the speed."""
        start = time.monotonic()
        yield
        self._paused_s += time.monotonic() - start

    def pairs_per_s(self) -> float:
        """Pairs per second since the start, without the time of validation and checkpoints."""
        spent = self._spent_s()
        return (self._state.step - self._first) * self._recipe.batch_size / spent if spent > 0 else 0.0

    def _spent_s(self) -> float:
        return time.monotonic() - self._start - self._paused_s

    def _use(self) -> MetricRow:
        """Waiting for the loader; pairs per second, MFU, memory in GiB, device hours, and their cost."""
        metrics: MetricRow = {"train/loader_wait_share": self._loader.wait_s / max(self._spent_s(), 1e-9)}
        if self._recipe.on_corrupt_shard == "quarantine":
            metrics["train/num_quarantined"] = self._loader.num_quarantined  # on this rank, since it started
        if self._device is None:
            return metrics
        devices, model = self._ranks.world_size, self._state.model
        hours = (time.monotonic() - self._start) * devices / 3600
        metrics |= {"train/pairs_per_s": self.pairs_per_s(), "train/device_hours": hours}
        if self._device.device_tflops is not None:
            self._operations = of = self._operations or count_operations(model.config, model.vocab_size)
            # a backward pass costs as much as two forward passes
            image, text = (1 if model.locked == tower else 3 for tower in ("image", "text"))
            of_a_pair = image * of.image + text * float(of.text(self._tokens).mean())
            metrics["train/mfu"] = self.pairs_per_s() * of_a_pair / (devices * self._device.device_tflops * 1e12)
        if self._device.price_per_hour is not None:
            metrics["train/cost"] = hours * self._device.price_per_hour
        if self._ranks.device.type == "cuda":
            metrics["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._ranks.device) / 2**30
        return metrics


class Operations(NamedTuple):
    """Floating-point operations of a forward pass, without the loss: of an image, of a text by its number of tokens."""

    image: float
    text: Callable[[Any], Any]


@torch.no_grad()
def count_operations(config: ModelConfig, vocab_size: int) -> Operations:
    """Counts both towers.

    On towers without memory for weights, since the run's own may be sharded or compiled. A text's operations are a
    polynomial of degree two in its tokens, so three lengths say all.
    """

    def counted(encode: Callable[..., Tensor], *inputs: Tensor) -> float:
        with FlopCounterMode(display=False) as counter:
            encode(*inputs)
        return float(counter.get_total_flops())

    with torch.device("meta"):
        model = DualEncoder(config, vocab_size).eval()
        image = counted(model.encode_image, torch.zeros(1, 3, config.image_px, config.image_px))
        of_tokens = (torch.ones(1, num_tokens, dtype=torch.int64) for num_tokens in (1, 2, 3))
        one, two, three = (counted(model.encode_text, ones, ones) for ones in of_tokens)
    square = (three - 2 * two + one) / 2
    linear = two - one - 3 * square
    return Operations(image, lambda tokens: one + (tokens - 1) * (linear + (tokens + 1) * square))
