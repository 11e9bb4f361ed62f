"""The training loop (paper section 5), the same for pre-training and fine-tuning.

Order of a step, and with it of resuming: batch of step s -> forward -> loss over the global batch -> gradients, summed
over ranks -> learning rate of s -> update -> s + 1 steps are done -> metrics, validation, checkpoint. Checkpoints are
written only after whole steps, and everything else is a function of the step, so a resumed run's bytes equal an
uninterrupted one's.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from align.checkpoint import CheckpointFolder
from align.config.health import HealthConfig
from align.config.recipe import Recipe
from align.errors import NonFiniteLossError, TrainingError
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.acceleration import as_written
from align.training.batch import Augmentation, Batch, Sampling
from align.training.health import Health
from align.training.loader import TrainLoader
from align.training.process_group import Ranks
from align.training.progress import Progress, Usage
from align.training.samples import SampleSources, SplitSamples
from align.training.schedule import learning_rate_at
from align.training.state import MetricRow, State
from align.training.step import Gradients, Interrupted, compute_gradients
from align.training.validation import batch_norm_gap, validate

#: Batch-norm statistics are estimated from at most this many training images, STATISTICS_PART at a time.
STATISTICS_IMAGES, STATISTICS_PART = 1024, 64

#: Seconds within which torch's launcher collects what a rank returned, if it still polls.
_LAUNCHER_TAKES_S = 3.0

#: What ends all ranks together: one was told to end, or the leading one could not write a checkpoint. The others cannot
#: see that, and would die of their lost connection.
_STOPPED, _NOT_SAVED = 1, 2

#: Takes the metrics of a row, and its step.
Log = Callable[[dict[str, float], int], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Monitoring:
    """How a run is watched; none of it changes the result.

    Attributes:
        log: live logging, called on the leading rank; picklable if there are several processes.
        health: thresholds for warnings; None: there are no warnings.
    """

    log: Log | None = None
    health: HealthConfig | None = None


UNWATCHED = Monitoring()


def train(
    state: State, recipe: Recipe, ranks: Ranks, *, samples: SampleSources, tokenizer: TextTokenizer,
    folder: CheckpointFolder, monitoring: Monitoring = UNWATCHED,
) -> float:  # fmt: skip
    """Trains from `state.step` to `recipe.num_steps` and writes a checkpoint at the end.

    Returns:
        Pairs per second over the steps done here; 0.0 if there were none.

    Raises:
        NonFiniteLossError: the loss is inf or NaN; the checkpoints before it are kept.
        TrainingError: SIGTERM came, and the last whole step was saved; or a checkpoint could not be written.
    """
    model, log, health = state.model, monitoring.log, monitoring.health
    loader = _loader(model, recipe, ranks, samples)
    progress = Progress(recipe, state.step)
    watch = Health(health, recipe.section) if health and ranks.leads else None
    usage = Usage(health, model, recipe, ranks.world_size, ranks.device) if health and ranks.leads else None
    with stop_requested() as stopped, ExitStack() as stack:
        if ranks.leads and isinstance(log, AbstractContextManager):
            stack.enter_context(log)  # left when the last checkpoint is on disk
        for split in samples.all():
            split.tars.stopped = stopped  # a process told to stop does not wait for an unavailable store
        stack.callback(folder.wait)  # however this ends, what was saved is on disk then
        model.train()
        takes_part = ranks.leads or state.sharded  # in work that one rank does alone, if it has whole weights
        for batch in loader.batches(state.step, recipe.num_steps):
            rate = learning_rate_at(state.step, recipe)
            try:
                gradients = _update(state, recipe, ranks, tokenizer, batch, rate, lambda: ranks.any(stopped()))
            except Interrupted:  # the state is that of the last whole step
                _save(state, ranks, folder)
                raise _stopped(state, recipe, _STOPPED) from None
            done = state.step == recipe.num_steps
            measured: MetricRow = {}
            if takes_part and (done or (samples.val and state.step % recipe.validate_every_steps == 0)):
                with progress.paused(), state.averaged(), as_written():
                    refresh_statistics(model, samples.train, ranks.device)
                    measured |= batch_norm_gap(model, samples.train, ranks.device)
                    measured |= validate(model, tokenizer, samples.val) if samples.val else {}
            if ranks.leads:
                temperature = float(model.temperature.detach())
                progress.show(state.step, gradients.loss, temperature, rate)
                if watch is not None and (state.loss_scale is None or math.isfinite(gradients.norm)):
                    watch.step(state.step, temperature=temperature, gradient_norm=gradients.norm)
                row: MetricRow = {}
                live: dict[str, float] = {}  # values that differ from run to run: for MLflow only
                if done or state.step % recipe.log_every_steps == 0:
                    row |= _means(state) | {"train/temperature": temperature, "train/learning_rate": rate}
                    live["train/loader_wait_share"] = loader.wait_s / max(progress.spent_s, 1e-9)
                    live |= usage.metrics(progress) if usage else {}
                    if recipe.on_corrupt_shard == "quarantine":
                        live["train/num_quarantined"] = loader.num_quarantined  # on this rank, since it started
                row |= measured
                if row:
                    state.rows.append({"step": state.step, **row})
                    if watch is not None:
                        watch.row(state.step, row | live, model.config.embed_width)
                        live["train/alarms"] = float(watch.of_the_model())
                    if log is not None:
                        log({name: float(value) for name, value in (row | live).items()}, state.step)
            end = ranks.most(_NOT_SAVED if folder.has_failed() else int(stopped()))
            best = _is_best(state, recipe)
            if state.sharded and measured:
                best = ranks.any(best)  # only the leading rank has the rows, but all ranks must save together
            if takes_part and (done or end or best or state.step % recipe.checkpoint_every_steps == 0):
                with progress.paused():
                    _save(state, ranks, folder, best=best)
            if end and not done:
                raise _stopped(state, recipe, end)
        if ranks.any(folder.has_failed(wait=True)):
            raise _stopped(state, recipe, _NOT_SAVED)
    ranks.barrier()
    return progress.pairs_per_s()


def _loader(model: DualEncoder, recipe: Recipe, ranks: Ranks, samples: SampleSources) -> TrainLoader:
    return TrainLoader(
        samples.train,
        sampling=Sampling(recipe.seed, recipe.batch_size, recipe.shuffle_block),
        augmentation=Augmentation(
            image_px=model.config.image_px, num_draws=model.vision_model.num_blocks, flip=recipe.flip,
            phrase_dropout=recipe.phrase_dropout,
        ),
        extra=samples.extra, rank=ranks.rank, world_size=ranks.world_size, num_threads=recipe.num_loader_threads,
    )  # fmt: skip


def _save(state: State, ranks: Ranks, folder: CheckpointFolder, *, best: bool = False) -> None:
    """Saves on the leading rank. With sharded weights all ranks must call it."""
    if ranks.leads or state.sharded:
        values = state.saved()
        if ranks.leads:
            folder.save(state.step, values, best=best)


def _stopped(state: State, recipe: Recipe, end: int) -> TrainingError:
    if end == _NOT_SAVED:  # the leading rank says why: its folder.wait does
        return TrainingError(
            f"stopped after step {state.step} of {recipe.num_steps}: the leading rank could not write a checkpoint"
        )
    return TrainingError(
        f"stopped by SIGTERM after step {state.step} of {recipe.num_steps}; that step is saved; run again to resume"
    )


def _is_best(state: State, recipe: Recipe) -> bool:
    """Whether this step's row has the best value of `best_metric` so far; of equal values the first is best."""
    if recipe.best_metric is None or not state.rows or state.rows[-1]["step"] != state.step:
        return False
    *earlier, last = (row.get(recipe.best_metric) for row in state.rows)
    return last is not None and last > max((value for value in earlier if value is not None), default=-math.inf)


def _means(state: State) -> MetricRow:
    """Means since the last row; resets them."""
    row: MetricRow = {"train/loss": sum(state.losses) / len(state.losses)}
    if state.gradient_norms:
        row["train/gradient_norm"] = sum(state.gradient_norms) / len(state.gradient_norms)
    if state.loss_scale is not None:
        row |= {"train/loss_scale": state.loss_scale.value, "train/skipped_steps": state.loss_scale.skipped}
        state.loss_scale.skipped = 0
    state.losses.clear()
    state.gradient_norms.clear()
    return row


def _update(
    state: State, recipe: Recipe, ranks: Ranks, tokenizer: TextTokenizer, batch: Batch, rate: float, stop: Stop
) -> Gradients:
    """One step. Raises Interrupted if it was stopped half-way; nothing has changed then."""
    model, optimiser = state.model, state.optimiser
    optimiser.set_learning_rate(rate)
    try:
        scale = state.loss_scale.value if state.loss_scale else 1.0
        gradients = compute_gradients(model, recipe, ranks, tokenizer, batch, stop, scale)
        sound = state.loss_scale is None or state.loss_scale.update(gradients.norm)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(
            f"{error} at step {state.step + 1} (learning rate {rate:.3g}, temperature "
            f"{float(model.temperature.detach()):.3g}); lower the learning rate; earlier checkpoints are kept"
        ) from None
    if sound:
        optimiser.step()
        if recipe.ema_decay is not None:
            state.update_average(recipe.ema_decay)
        state.gradient_norms.append(gradients.norm)
    state.step += 1
    state.losses.append(gradients.loss)
    return gradients


def refresh_statistics(model: DualEncoder, samples: SplitSamples, device: torch.device) -> None:
    """Estimates batch-norm's running statistics from centre crops of training images, evenly spread over the split."""
    group = model.config.batch_norm_group
    count = max(min(samples.num_images, STATISTICS_IMAGES) // group * group, min(samples.num_images, group))
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    part = max(group, STATISTICS_PART // group * group)
    parts = [chosen[start : start + part] for start in range(0, len(chosen), part)]
    size = model.config.image_px
    estimate_statistics(model.vision_model, (to_pixels(samples.centre_crops(rows, size)).to(device) for rows in parts))


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM came. Outside the main thread no signal handler is set."""
    received: list[int] = []
    try:
        before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
        if received and multiprocessing.parent_process() is not None:
            # A rank. If all ranks stopped by their vote, the launcher collects their results at once. If it is ending
            # the others because one rank died, it would wait 30 s for a rank that has returned, and then kill it.
            end = threading.Timer(_LAUNCHER_TAKES_S, os.kill, (os.getpid(), signal.SIGTERM))
            end.daemon = True
            end.start()
