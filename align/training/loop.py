"""The training loop (paper section 5), for pre-training and fine-tuning alike.

Order of a step, and with it of resuming: batch of step s -> forward -> loss over the global batch -> gradients,
summed over ranks -> learning rate of s -> update -> s + 1 steps are done -> metrics, validation, checkpoint. A
checkpoint is written only after whole steps; everything else is a function of the step, so a resumed run's bytes equal
an uninterrupted one's.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from align.config.recipe import Recipe
from align.errors import NonFiniteLossError, TrainingError
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer
from align.stage import PROGRESS_INTERVAL_S, say
from align.training.checkpoint import CheckpointFolder
from align.training.curves import Row
from align.training.lamb import Lamb, learning_rate_at, parameter_groups
from align.training.loader import Batch, TrainLoader
from align.training.process_group import Ranks
from align.training.samples import Samples
from align.training.step import Interrupted, compute_gradients
from align.training.validation import validate

#: Batch-norm statistics are estimated from at most this many training images, in parts of STATISTICS_PART.
STATISTICS_IMAGES, STATISTICS_PART = 1024, 64

Log = Callable[[dict[str, float], int], None]
Stop = Callable[[], bool]


@dataclass
class State:
    """What a checkpoint holds.

    Attributes:
        step: whole steps done.
        rows: metric rows so far.
        losses: loss of each step since the last row.
    """

    model: DualEncoder
    optimiser: Lamb
    step: int = 0
    rows: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def save(self, folder: CheckpointFolder) -> None:
        """Writes a checkpoint of the step."""
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        folder.save(self.step, state | {"rows": self.rows, "losses": self.losses})

    def load(self, saved: dict[str, Any]) -> None:
        """Takes over a checkpoint."""
        self.model.load_state_dict(saved["model"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.rows, self.losses = saved["step"], saved["rows"], saved["losses"]


def new_state(model: DualEncoder, recipe: Recipe) -> State:
    """A model and its optimiser at step 0."""
    groups = parameter_groups(model, recipe.text_learning_rate_scale)
    return State(model, Lamb(groups, weight_decay=recipe.weight_decay, betas=(0.9, recipe.beta2)))


def train(
    state: State, recipe: Recipe, ranks: Ranks, *, train_samples: Samples, val_samples: Samples | None,
    tokenizer: TextTokenizer, folder: CheckpointFolder, log: Log | None = None,
    extra_samples: Sequence[tuple[Samples, float]] = (),
) -> float:  # fmt: skip
    """Trains from `state.step` to `recipe.num_steps`, leaving a checkpoint at the end.

    Returns:
        Pairs per second over the steps done here; 0.0 if there were none.

    Raises:
        NonFiniteLossError: the loss is inf or NaN; the checkpoints before it stay.
        TrainingError: SIGTERM came; the last whole step was saved.
    """
    model = state.model
    loader = TrainLoader(
        train_samples, seed=recipe.seed, batch_size=recipe.batch_size, image_px=model.config.image_px, flip=recipe.flip,
        num_draws=model.vision_model.num_blocks, phrase_dropout=recipe.phrase_dropout, rank=ranks.rank,
        world_size=ranks.world_size, shuffle_block=recipe.shuffle_block, extra=extra_samples,
        num_threads=recipe.num_loader_threads,
    )  # fmt: skip
    progress = Progress(recipe, state.step)
    with stop_requested() as stopped:
        model.train()
        for batch in loader.batches(state.step, recipe.num_steps):
            rate = learning_rate_at(
                state.step, peak=recipe.learning_rate, warmup_steps=recipe.warmup_steps, num_steps=recipe.num_steps
            )
            try:
                loss = _update(state, recipe, ranks, tokenizer, batch, rate, lambda: ranks.any(stopped()))
            except Interrupted:  # the last whole step stands
                if ranks.leads:
                    state.save(folder)
                raise _stopped(state, recipe) from None
            done = state.step == recipe.num_steps
            if ranks.leads:
                temperature = float(model.temperature.detach())
                progress.show(state.step, loss, temperature, rate)
                row: Row = {}
                if done or state.step % recipe.log_every_steps == 0:
                    row |= {"train/loss": sum(state.losses) / len(state.losses)}
                    row |= {"train/temperature": temperature, "train/learning_rate": rate}
                    state.losses.clear()
                if done or (val_samples and state.step % recipe.validate_every_steps == 0):
                    with progress.paused():
                        refresh_statistics(model, train_samples, ranks.device)
                        row |= validate(model, tokenizer, val_samples) if val_samples else {}
                if row:
                    state.rows.append({"step": state.step, **row})
                    if log is not None:
                        log({name: float(value) for name, value in row.items()}, state.step)
            stop = ranks.any(stopped())
            if ranks.leads and (done or stop or state.step % recipe.checkpoint_every_steps == 0):
                with progress.paused():
                    state.save(folder)
            if stop and not done:
                raise _stopped(state, recipe)
    ranks.barrier()
    return progress.pairs_per_s()


def _stopped(state: State, recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"stopped by SIGTERM after step {state.step} of {recipe.num_steps}; it is saved, run again to go on"
    )


def _update(
    state: State, recipe: Recipe, ranks: Ranks, tokenizer: TextTokenizer, batch: Batch, rate: float, stop: Stop
) -> float:
    """One step; returns its loss. Raises Interrupted where it was left, with nothing changed."""
    model, optimiser = state.model, state.optimiser
    optimiser.set_learning_rate(rate)
    try:
        loss = compute_gradients(model, recipe, ranks, tokenizer, batch, stop)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(
            f"{error} at step {state.step + 1} (learning rate {rate:.3g}, temperature "
            f"{float(model.temperature.detach()):.3g}); lower the learning rate; earlier checkpoints stay"
        ) from None
    optimiser.step()
    state.step += 1
    state.losses.append(loss)
    return loss


def refresh_statistics(model: DualEncoder, samples: Samples, device: torch.device) -> None:
    """Estimates batch-norm's running statistics from centre crops of training images, evenly spread over the split."""
    group = model.config.batch_norm_group
    count = max(min(samples.num_images, STATISTICS_IMAGES) // group * group, min(samples.num_images, group))
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    part = max(group, STATISTICS_PART // group * group)
    parts = [chosen[start : start + part] for start in range(0, len(chosen), part)]
    size = model.config.image_px
    estimate_statistics(model.vision_model, (to_pixels(samples.centre_crops(rows, size)).to(device) for rows in parts))


class Progress:
    """Speed and a line every few seconds: step of total, loss, temperature, learning rate, pairs/s, ETA."""

    def __init__(self, recipe: Recipe, first_step: int) -> None:
        self._recipe, self._first, self._last = recipe, first_step, first_step
        self._start = self._shown = time.monotonic()
        self._paused = 0.0

    def show(self, step: int, loss: float, temperature: float, rate: float) -> None:
        """Counts a step; speaks if the last line is some seconds old."""
        self._last = step
        now = time.monotonic()
        if now - self._shown < PROGRESS_INTERVAL_S and step != self._recipe.num_steps:
            return
        self._shown = now
        speed = self.pairs_per_s()
        left = (self._recipe.num_steps - step) * self._recipe.batch_size / speed if speed else 0.0
        say(
            f"{self._recipe.section}: step {step:,} of {self._recipe.num_steps:,}, loss {loss:.3f}, temperature "
            f"{temperature:.4f}, learning rate {rate:.2e}, {speed:,.0f} pairs/s, {left:,.0f} s left"
        )

    def pairs_per_s(self) -> float:
        """Pairs per second of training proper, without validation and checkpoints."""
        spent = time.monotonic() - self._start - self._paused
        return (self._last - self._first) * self._recipe.batch_size / spent if spent > 0 else 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in the block does not count."""
        start = time.monotonic()
        yield
        self._paused += time.monotonic() - start


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM came; outside the main thread signals are left alone."""
    came: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
