"""The training loop (paper section 5), for pre-training and fine-tuning alike.

Order of a step, and with it of resuming: batch of step s -> forward -> loss over the global batch -> gradients,
summed over ranks -> learning rate of s -> update -> s + 1 steps are done -> metrics, validation, checkpoint. A
checkpoint is written only after whole steps; everything else is a function of the step, so a resumed run's bytes equal
an uninterrupted one's.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch

from align.config.health import HealthConfig
from align.config.recipe import Recipe
from align.errors import NonFiniteLossError, TrainingError
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.acceleration import as_written
from align.training.checkpoint import CheckpointFolder
from align.training.curves import Row
from align.training.health import Health
from align.training.lamb import learning_rate_at
from align.training.loader import Batch, TrainLoader
from align.training.process_group import Ranks
from align.training.progress import Progress, Usage
from align.training.samples import Samples
from align.training.state import State
from align.training.step import Gradients, Interrupted, compute_gradients
from align.training.validation import batch_norm_gap, validate

#: Batch-norm statistics are estimated from at most this many training images, in parts of STATISTICS_PART.
STATISTICS_IMAGES, STATISTICS_PART = 1024, 64

#: Seconds in which torch's launcher has taken what a rank returned, if it still looks.
_LAUNCHER_TAKES_S = 3.0

Log = Callable[[dict[str, float], int], None]
Stop = Callable[[], bool]


def train(
    state: State, recipe: Recipe, ranks: Ranks, *, train_samples: Samples, val_samples: Samples | None,
    tokenizer: TextTokenizer, folder: CheckpointFolder, log: Log | None = None,
    extra_samples: Sequence[tuple[Samples, float]] = (), health: HealthConfig | None = None,
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
    watch = Health(health, recipe.section) if health and ranks.leads else None
    usage = Usage(health, model, recipe, ranks.world_size, ranks.device) if health and ranks.leads else None
    with stop_requested() as stopped, ExitStack() as stack:
        if ranks.leads and isinstance(log, AbstractContextManager):
            stack.enter_context(log)  # left when the last checkpoint is on disk
        for samples in filter(None, (train_samples, val_samples, *(more for more, _ in extra_samples))):
            samples.bytes.stopped = stopped  # who is to stop does not wait for a store that is away
        stack.callback(folder.wait)  # however this ends, what was saved is on disk then
        model.train()
        takes_part = ranks.leads or state.sharded  # in what one rank does alone, if it has whole weights
        for batch in loader.batches(state.step, recipe.num_steps):
            rate = learning_rate_at(
                state.step, peak=recipe.learning_rate, warmup_steps=recipe.warmup_steps, num_steps=recipe.num_steps
            )
            try:
                gradients = _update(state, recipe, ranks, tokenizer, batch, rate, lambda: ranks.any(stopped()))
            except Interrupted:  # the last whole step stands
                _save(state, ranks, folder)
                raise _stopped(state, recipe) from None
            done = state.step == recipe.num_steps
            measured: Row = {}
            if takes_part and (done or (val_samples and state.step % recipe.validate_every_steps == 0)):
                with progress.paused(), state.averaged(), as_written():
                    refresh_statistics(model, train_samples, ranks.device)
                    measured |= batch_norm_gap(model, train_samples, ranks.device)
                    measured |= validate(model, tokenizer, val_samples) if val_samples else {}
            if ranks.leads:
                temperature = float(model.temperature.detach())
                progress.show(state.step, gradients.loss, temperature, rate)
                if watch is not None and (state.loss_scale is None or math.isfinite(gradients.norm)):
                    watch.step(state.step, temperature=temperature, gradient_norm=gradients.norm)
                row: Row = {}
                live: dict[str, float] = {}  # what differs from run to run: for MLflow only
                if done or state.step % recipe.log_every_steps == 0:
                    row |= _means(state) | {"train/temperature": temperature, "train/learning_rate": rate}
                    live["train/loader_wait_share"] = loader.wait_s / max(progress.spent_s, 1e-9)
                    live |= usage.metrics(progress) if usage else {}
                    if recipe.on_corrupt_shard == "quarantine":
                        live["train/num_quarantined"] = loader.num_quarantined  # on this rank, since it was started
                row |= measured
                if row:
                    state.rows.append({"step": state.step, **row})
                    if watch is not None:
                        watch.row(state.step, row | live, model.config.embed_width)
                        live["train/alarms"] = float(len(watch.alarms))
                    if log is not None:
                        log({name: float(value) for name, value in (row | live).items()}, state.step)
            stop = ranks.any(stopped())
            best = _is_best(state, recipe)
            if state.sharded and measured:
                best = ranks.any(best)  # the rows are the leading rank's, and all have to save together
            if takes_part and (done or stop or best or state.step % recipe.checkpoint_every_steps == 0):
                with progress.paused():
                    _save(state, ranks, folder, best=best)
            if stop and not done:
                raise _stopped(state, recipe)
    ranks.barrier()
    return progress.pairs_per_s()


def _save(state: State, ranks: Ranks, folder: CheckpointFolder, *, best: bool = False) -> None:
    """Saves on the leading rank; where weights are sharded, all ranks have to come."""
    if ranks.leads or state.sharded:
        values = state.saved()
        if ranks.leads:
            folder.save(state.step, values, best=best)


def _stopped(state: State, recipe: Recipe) -> TrainingError:
    return TrainingError(
        f"stopped by SIGTERM after step {state.step} of {recipe.num_steps}; it is saved, run again to go on"
    )


def _is_best(state: State, recipe: Recipe) -> bool:
    """Whether the row of this very step has the best value so far of `best_metric`; the first of equals counts."""
    if recipe.best_metric is None or not state.rows or state.rows[-1]["step"] != state.step:
        return False
    *earlier, last = (row.get(recipe.best_metric) for row in state.rows)
    return last is not None and last > max((value for value in earlier if value is not None), default=-math.inf)


def _means(state: State) -> Row:
    """Means since the last row, and a new beginning."""
    row: Row = {"train/loss": sum(state.losses) / len(state.losses)}
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
    """One step. Raises Interrupted where it was left, with nothing changed."""
    model, optimiser = state.model, state.optimiser
    optimiser.set_learning_rate(rate)
    try:
        scale = state.loss_scale.value if state.loss_scale else 1.0
        gradients = compute_gradients(model, recipe, ranks, tokenizer, batch, stop, scale)
        sound = state.loss_scale is None or state.loss_scale.update(gradients.norm)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(
            f"{error} at step {state.step + 1} (learning rate {rate:.3g}, temperature "
            f"{float(model.temperature.detach()):.3g}); lower the learning rate; earlier checkpoints stay"
        ) from None
    if sound:
        optimiser.step()
        if recipe.ema_decay is not None:
            state.update_average(recipe.ema_decay)
        state.gradient_norms.append(gradients.norm)
    state.step += 1
    state.losses.append(gradients.loss)
    return gradients


def refresh_statistics(model: DualEncoder, samples: Samples, device: torch.device) -> None:
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
        if came and multiprocessing.parent_process() is not None:
            # A rank. Where all stop by their vote, the launcher takes their answers at once; where it ends the others
            # of one that died, it would wait half a minute for who has returned, and then kill it.
            end = threading.Timer(_LAUNCHER_TAKES_S, os.kill, (os.getpid(), signal.SIGTERM))
            end.daemon = True
            end.start()
