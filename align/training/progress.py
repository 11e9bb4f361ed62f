"""Speed and use of devices: they vary from run to run, so no report holds them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils.flop_counter import FlopCounterMode

from align.config.health import HealthConfig
from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.console import PROGRESS_INTERVAL_S, say
from align.model.dual_encoder import DualEncoder


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

    Args:
        health: peak and price of one device.
        model: its operations are counted once, for one image and one text of full length.
        recipe: `micro_batch` costs a second forward pass.
        num_devices: of the run.
        device: of this rank.
    """

    def __init__(
        self, health: HealthConfig, model: DualEncoder, recipe: Recipe, num_devices: int, device: torch.device
    ) -> None:
        self._health, self._num_devices, self._device = health, num_devices, device
        self._flops = 0.0
        if health.device_tflops is not None:
            forward = flops_of_a_pair(model.config, model.vocab_size)
            # a backward pass costs as much as two forward passes
            self._flops = forward * (4 if recipe.micro_batch else 3)

    def metrics(self, progress: Progress) -> dict[str, float]:
        """Live metrics: pairs per second, share of the peak (MFU), memory in GiB, device hours, and their cost."""
        speed = progress.pairs_per_s()
        hours = progress.wall_s * self._num_devices / 3600
        metrics = {"train/pairs_per_s": speed, "train/device_hours": hours}
        if self._health.device_tflops is not None:
            metrics["train/mfu"] = speed * self._flops / (self._num_devices * self._health.device_tflops * 1e12)
        if self._health.price_per_hour is not None:
            metrics["train/cost"] = hours * self._health.price_per_hour
        if self._device.type == "cuda":
            metrics["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return metrics


@torch.no_grad()
def flops_of_a_pair(config: ModelConfig, vocab_size: int) -> float:
    """Floating-point operations of one forward pass of both towers, without the loss.

    Counted on towers without memory for weights, since the run's own may be sharded or compiled.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = DualEncoder(config, vocab_size).eval()
        model.encode_image(torch.zeros(1, 3, config.image_px, config.image_px))
        ids = torch.zeros(1, config.max_tokens, dtype=torch.int64)
        model.text_projection(model.text_model(input_ids=ids).last_hidden_state[:, 0])  # a mask would need values
    return float(counter.get_total_flops())
