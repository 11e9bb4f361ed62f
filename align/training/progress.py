"""Speed and use of devices: they vary from run to run, so no report holds them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from align.config.infrastructure import HealthConfig
from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.display.console import PROGRESS_INTERVAL_S, say
from align.model.dual_encoder import DualEncoder
from align.training.batches.batch import Batch


class Progress:
    """Measures speed and prints a line every few seconds: step, loss, temperature, rate, pairs/s, time left."""

    def __init__(self, recipe: Recipe, first_step: int) -> None:
        self._recipe, self._first, self._last = recipe, first_step, first_step
        self._start = self._shown = time.monotonic()
        self._paused = 0.0

    def show(self, step: int, loss: float, temperature: float, rate: float) -> None:
        """Counts a step, and prints a line if the last one is some seconds old."""
        self._last = step
        now = time.monotonic()
        if now - self._shown < PROGRESS_INTERVAL_S and step != self._recipe.num_steps:
            return
        self._shown = now
        speed = self.pairs_per_s()
        left = (self._recipe.num_steps - step) * self._recipe.batch_size / speed if speed else 0.0
        say(
            f"{self._recipe.section}: step {step:,} of {self._recipe.num_steps:,}, loss {loss:.3f}, temperature "
            f"{temperature:.4f}, learning rate {rate:.2e}, {speed:,.0f} pairs/s, {left:,.0f} s left",
            done=step, total=self._recipe.num_steps, per_s=speed / self._recipe.batch_size,
        )  # fmt: skip

    @property
    def spent_s(self) -> float:
        """Seconds of training without validation and checkpoints."""
        return time.monotonic() - self._start - self._paused

    @property
    def wall_s(self) -> float:
        """Seconds since the start, with validation and checkpoints."""
        return time.monotonic() - self._start

    def pairs_per_s(self) -> float:
        """Pairs per second, without the time of validation and checkpoints."""
        spent = self.spent_s
        return (self._last - self._first) * self._recipe.batch_size / spent if spent > 0 else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time of the block."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start


class Usage:
    """A run's use of its devices.

    MFU is the share of the devices' peak that goes into the model: operations of one forward and one backward pass, of
    a locked tower forward only. Padding, and what is computed again to save memory (`micro_batch`,
    `gradient_checkpointing`), are no part of it.

    Args:
        health: peak and price of one device.
        model: its operations are counted once.
        num_devices: of the run.
        device: of this rank.
    """

    def __init__(self, health: HealthConfig, model: DualEncoder, num_devices: int, device: torch.device) -> None:
        self._health, self._num_devices, self._device = health, num_devices, device
        self._config, self._vocab_size = model.config, model.vocab_size
        # a backward pass costs as much as two forward passes
        self._passes_image, self._passes_text = (1 if model.locked == tower else 3 for tower in ("image", "text"))
        self._operations: Operations | None = None

    def metrics(self, progress: Progress, batch: Batch) -> dict[str, float]:
        """Live metrics: pairs per second, share of the peak (MFU), memory in GiB, device hours, and their cost.

        Args:
            progress: of the run.
            batch: whose texts are an example of all.
        """
        speed = progress.pairs_per_s()
        hours = progress.wall_s * self._num_devices / 3600
        metrics = {"train/pairs_per_s": speed, "train/device_hours": hours}
        if self._health.device_tflops is not None:
            self._operations = operations = self._operations or count_operations(self._config, self._vocab_size)
            of_texts = statistics.fmean(map(operations.text, batch.tokens.lengths.tolist()))
            of_a_pair = self._passes_image * operations.image + self._passes_text * of_texts
            peak = self._num_devices * self._health.device_tflops * 1e12
            metrics["train/mfu"] = speed * of_a_pair / peak
        if self._health.price_per_hour is not None:
            metrics["train/cost"] = hours * self._health.price_per_hour
        if self._device.type == "cuda":
            metrics["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return metrics


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a forward pass, without the loss.

    Attributes:
        image: of one image.
        once, per_token, per_pair_of_tokens: of a text: its projection, its linear layers, its attention.
    """

    image: float
    once: float
    per_token: float
    per_pair_of_tokens: float

    def text(self, num_tokens: int) -> float:
        """Of one text, without padding."""
        return self.once + num_tokens * (self.per_token + num_tokens * self.per_pair_of_tokens)


@torch.no_grad()
def count_operations(config: ModelConfig, vocab_size: int) -> Operations:
    """Counts both towers.

    On towers without memory for weights, since the run's own may be sharded or compiled. A text's operations are a
    polynomial of degree two in its tokens, so three lengths say all.
    """
    with torch.device("meta"):
        model = DualEncoder(config, vocab_size).eval()
        with FlopCounterMode(display=False) as counter:
            model.encode_image(torch.zeros(1, 3, config.image_px, config.image_px))
        image, texts = float(counter.get_total_flops()), []
        for num_tokens in (1, 2, 3):
            with FlopCounterMode(display=False) as counter:
                ids = torch.zeros(1, num_tokens, dtype=torch.int64)
                model.encode_text(ids, torch.ones_like(ids))
            texts.append(float(counter.get_total_flops()))
    one, two, three = texts
    square = (three - 2 * two + one) / 2
    linear = two - one - 3 * square
    return Operations(image, one - linear - square, linear, square)
