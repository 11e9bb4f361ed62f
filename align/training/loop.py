"""The training loop (paper section 5), the same for pre-training and fine-tuning.

Order of a step, and with it of resuming: batch of step s -> forward -> loss over the global batch -> gradients, summed
over ranks -> learning rate of s -> update -> s + 1 steps are done -> metrics, validation, checkpoint. Checkpoints are
written only after whole steps, and everything else is a function of the step, so a resumed run's bytes equal an
uninterrupted one's.

The host reads the values of a step, and the ranks' votes on ending, when the next step has been started
(`align.training.readings`); a step that writes a row, validates or saves reads its own at once. So a run told to stop
stops after the step that it computes, or after the next one.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from align.config.infrastructure import HealthConfig
from align.config.recipe import Recipe
from align.durable.checkpoint import CheckpointFolder
from align.errors import StoppedError, TrainingError
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.acceleration import as_written
from align.training.batches.batch import Augmentation, Batch, Sampling, Workers, one_ahead
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SampleSources, SplitSamples
from align.training.health import Health, batch_norm_gap, possible_rank, validate
from align.training.progress import Progress, Usage
from align.training.ranks.process_group import Ranks
from align.training.readings import Pending, Reading, Vote, diverged
from align.training.state import MetricRow, State
from align.training.step import autocast, compute_gradients

#: Batch-norm statistics are estimated from at most this many training images, STATISTICS_AT_ONCE at a time.
STATISTICS_IMAGES, STATISTICS_AT_ONCE = 1024, 64

#: By default. Each decodes some 2,000 images of 346 px a second, more than four for a GPU's step.
MOST_LOADER_PROCESSES = 8

#: Takes the metrics of a row, and its step.
Log = Callable[[dict[str, float], int], None]
Stop = Callable[[], bool]
#: Measures a model on evaluation sets; all ranks call it, and get the same. The flag is `spread` of `validate`.
Validation = Callable[[DualEncoder, TextTokenizer, Ranks, bool], MetricRow]


@dataclass(frozen=True)
class Monitoring:
    """How a run is watched; none of it changes the result.

    Attributes:
        log: live logging, called on the leading rank; picklable if there are several processes.
        health: what its devices are; None: there are no warnings, and nothing is said of the use of devices.
        validation: measures more than recall on the val split; picklable, as `log`.
    """

    log: Log | None = None
    health: HealthConfig | None = None
    validation: Validation | None = None


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
        StoppedError: SIGTERM came, and the last whole step is saved.
        TrainingError: a checkpoint could not be written.
    """
    model, log, health, validation = state.model, monitoring.log, monitoring.health, monitoring.validation
    loader = _loader(model, recipe, ranks, samples, tokenizer)
    progress = Progress(recipe, state.step)
    watch = Health(recipe.section, learns_temperature=recipe.learn_temperature) if health and ranks.leads else None
    ledger = _Ledger(state, progress if ranks.leads else None, watch)
    usage = Usage(health, model, ranks.world_size, ranks.device) if health and ranks.leads else None
    with stop_requested() as stopped, ExitStack() as stack:
        if ranks.leads and isinstance(log, AbstractContextManager):
            stack.enter_context(log)  # left when the last checkpoint is on disk
        for split in samples.all():
            split.tars.stopped = stopped  # a process told to stop does not wait for an unavailable store
        stack.callback(folder.wait)  # however this ends, what was saved is on disk then
        model.train()
        takes_part = ranks.leads or state.sharded  # in work that one rank does alone, if it has whole weights
        earlier: _Started | None = None  # the step before, whose values nobody has waited for
        for batch in one_ahead(loader.batches(state.step, recipe.num_steps), ranks.device):
            rate = learning_rate_at(state.step, recipe)
            pending = _update(state, recipe, ranks, tokenizer, batch, rate)
            done, row_due = state.step == recipe.num_steps, state.step % recipe.log_every_steps == 0
            anything = samples.val is not None or validation is not None
            validates = done or (anything and state.step % recipe.validate_every_steps == 0)
            saves = done or state.step % recipe.checkpoint_every_steps == 0
            end = False
            if earlier is not None:
                ledger.enter(earlier.pending.read())
                end, earlier = earlier.vote.result(), None
            if not (end or row_due or validates or saves):  # nothing outlasts this step: its values come with the next
                earlier = _Started(pending, _vote(folder, ranks, stopped))
                continue
            reading = pending.read()
            ledger.enter(reading)
            measured: MetricRow = {}
            if validates:
                with progress.paused(), as_written(), autocast(recipe, ranks.device):
                    refresh_statistics(model, samples.train, ranks, spread=not state.sharded)
                    if takes_part:
                        measured |= batch_norm_gap(model, samples.train, ranks.device)
                    if samples.val:
                        recalls, state.found[state.step] = validate(
                            model, samples.val, tokenizer, ranks, spread=not state.sharded
                        )
                        measured |= recalls
                    if validation is not None:
                        measured |= validation(model, tokenizer, ranks, not state.sharded)
            if ranks.leads:
                row: MetricRow = {}
                live: dict[str, float] = {}  # values that differ from run to run: for MLflow only
                if done or row_due:
                    row |= _means(state) | {"train/temperature": reading.temperature, "train/learning_rate": rate}
                    live["train/loader_wait_share"] = loader.wait_s / max(progress.spent_s, 1e-9)
                    live |= usage.metrics(progress, tokenizer, batch) if usage else {}
                    if recipe.on_corrupt_shard == "quarantine":
                        live["train/num_quarantined"] = loader.num_quarantined  # on this rank, since it started
                row |= measured
                if row:
                    state.rows.append({"step": state.step, **row})
                    if watch is not None:
                        watch.row(state.step, row | live, possible_rank(model, samples.val))
                        live |= watch.of_the_model()
                    if log is not None:
                        log({name: float(value) for name, value in (row | live).items()}, state.step)
            end = end or _vote(folder, ranks, stopped).result()
            best = _is_best(state, recipe)
            if state.sharded and measured:
                best = ranks.any(best)  # only the leading rank has the rows, but all ranks must save together
            if takes_part and (end or best or saves):
                with progress.paused():
                    values = state.saved()  # of sharded weights by all ranks
                    if ranks.leads:
                        folder.save(state.step, values, best=best)
            if end:
                break
        # All wait until it is saved: srun and mpirun end the ranks that are left when one has gone.
        at = f"after step {state.step} of {recipe.num_steps}"
        if ranks.any(folder.has_failed(wait=True)):  # the leading rank says why: its folder.wait does
            raise TrainingError(f"stopped {at}: the leading rank could not write a checkpoint")
        if state.step < recipe.num_steps:
            raise StoppedError(f"stopped by SIGTERM {at}; that step is saved; run again to resume")
    ranks.barrier()
    return progress.pairs_per_s()


def _loader(
    model: DualEncoder, recipe: Recipe, ranks: Ranks, samples: SampleSources, tokenizer: TextTokenizer
) -> TrainLoader:
    return TrainLoader(
        samples.train,
        sampling=Sampling(recipe.seed, recipe.batch_size),
        augmentation=Augmentation(
            image_px=model.config.image_px, num_draws=model.vision_model.num_blocks, flip=recipe.flip,
            crop_scale=recipe.crop_scale,
            phrase_dropout=recipe.phrase_dropout, sentence_share=recipe.sentence_share, tokenizer=tokenizer,
        ),
        extra=samples.extra, rank=ranks.rank, world_size=ranks.world_size,
        workers=Workers(loader_processes(recipe, ranks), pin=ranks.device.type == "cuda"),
    )  # fmt: skip


def loader_processes(recipe: Recipe, ranks: Ranks) -> int:
    """Those of a rank. On a CPU none by default: its threads share the cores with the computing anyway."""
    if recipe.num_loader_processes is not None:
        return recipe.num_loader_processes
    if ranks.device.type == "cpu":
        return 0
    return max(1, min(torch.get_num_threads() - 1, MOST_LOADER_PROCESSES))  # its share of the cores, less its own


def _is_best(state: State, recipe: Recipe) -> bool:
    """Whether this step's row has the best value of `best_metric` so far; of equal values the first is best."""
    return bool(state.rows) and state.rows[-1]["step"] == state.step == best_step(state.rows, recipe.best_metric)


def best_step(rows: Sequence[MetricRow], metric: str | None) -> int | None:
    """The step with the highest value of a metric, the first of equal ones; None if no row has it."""
    best = max((row for row in rows if metric in row), key=lambda row: row[str(metric)], default=None)
    return None if best is None else int(best["step"])


def _means(state: State) -> MetricRow:
    """Means since the last row; resets them."""
    row: MetricRow = {"train/loss": sum(state.losses) / len(state.losses)}
    if state.gradient_norms:
        row["train/gradient_norm"] = sum(state.gradient_norms) / len(state.gradient_norms)
    if state.scaler is not None:
        row |= {"train/loss_scale": state.scaler.get_scale(), "train/skipped_steps": state.skipped}
        state.skipped = 0
    state.losses.clear()
    state.gradient_norms.clear()
    return row


def _update(state: State, recipe: Recipe, ranks: Ranks, tokenizer: TextTokenizer, batch: Batch, rate: float) -> Pending:
    """Starts one step. With float16 it waits for the gradients: if they overflowed, no weight changes."""
    model, optimiser, scaler = state.model, state.optimiser, state.scaler
    optimiser.set_learning_rate(rate)
    before = model.temperature.detach()
    scaling = None if scaler is None else (scaler, optimiser)
    gradients = compute_gradients(model, recipe, ranks, tokenizer, batch, scaling)
    state.step += 1
    if scaler is None:
        optimiser.step()
    else:
        scale = scaler.get_scale()
        scaler.step(optimiser)
        scaler.update()
        state.skipped += scaler.get_scale() < scale
        if scaler.get_scale() < 1:
            raise diverged(f"the gradients overflow with a loss scale of {scale:g}", state.step, rate, float(before))
    return Pending(state.step, rate, (*gradients, before, model.temperature), may_overflow=scaler is not None)


class _Started(NamedTuple):
    """A step whose values, and whose vote on ending, are read when the next one has been started."""

    pending: Pending
    vote: Vote


@dataclass(frozen=True)
class _Ledger:
    """Where the values of each step go, in order: the state, the progress lines, and the signs of health."""

    state: State
    progress: Progress | None
    watch: Health | None

    def enter(self, reading: Reading) -> None:
        """Takes the values of the next step."""
        self.state.losses.append(reading.loss)
        if math.isfinite(reading.norm):  # or the step was left out
            self.state.gradient_norms.append(reading.norm)
            if self.watch is not None:
                self.watch.step(reading.step, temperature=reading.temperature, gradient_norm=reading.norm)
        if self.progress is not None:
            self.progress.show(reading.step, reading.loss, reading.temperature, reading.rate)


def _vote(folder: CheckpointFolder, ranks: Ranks, stopped: Stop) -> Vote:
    """On what ends all ranks together: one was told to end, or the leading one could not write a checkpoint. The others
    cannot see that, and would die of their lost connection.
    """
    return Vote(folder.has_failed() or stopped(), ranks)


def refresh_statistics(model: DualEncoder, samples: SplitSamples, ranks: Ranks, *, spread: bool) -> None:
    """Estimates batch-norm's running statistics from centre crops of training images, evenly spread over the split.

    Args:
        model: its statistics are set, on every rank.
        samples: of the training split.
        ranks: all of them call this.
        spread: whether each rank reads and computes its share, see `validate`.
    """
    if model.locked == "image":  # its statistics came with its weights
        return
    group = model.config.batch_norm_group
    count = max(min(samples.num_images, STATISTICS_IMAGES) // group * group, min(samples.num_images, group))
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    part = max(group, STATISTICS_AT_ONCE // group * group)
    parts = [chosen[start : start + part] for start in range(0, len(chosen), part)]
    several = spread and ranks.world_size > 1
    mine = parts[ranks.rank :: ranks.world_size] if several else parts
    batches = (
        to_pixels(np.stack([*samples.centre_crops(rows, model.config.image_px)])).to(ranks.device) for rows in mine
    )
    estimate_statistics(model.vision_model, batches, ranks.sum if several else None)


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
