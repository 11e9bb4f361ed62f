"""From a plan to trained weights (paper section 5), the same for pre-training and fine-tuning.

`run` starts the ranks, each of which is a `train_rank`; `train` is the loop. Checkpoints are written only after whole
steps, and everything else is a function of the step, so a resumed run's bytes equal an uninterrupted one's.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from align.config.recipe import Recipe
from align.display.console import say
from align.durable.checkpoint import CheckpointFolder
from align.durable.cores import cores
from align.durable.files import write_text
from align.durable.memory import freed_memory_kept
from align.errors import ConfigError, StoppedError, TrainingError
from align.model.dual_encoder import DualEncoder, load_model
from align.model.library_towers import require_size
from align.model.tokenizer import TextTokenizer
from align.training.acceleration import accelerated, require_compiler
from align.training.batches.alike import Alike
from align.training.batches.augmentation import Augmentation
from align.training.batches.batch import one_ahead
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SampleSources
from align.training.given_towers import given_weights, names_of, require_given
from align.training.plan import TrainingPlan
from align.training.progress import Watch
from align.training.ranks.process_group import Ranks, default_processes, launch
from align.training.ranks.sharding import shard, shards
from align.training.state import Found, MetricRow, State, best_step, new_state
from align.training.step import compute_gradients, compute_word_gradients
from align.training.validation import measure
from align.training.words import Words, shares_of, training_texts

#: The result of a run that has ended, beside its checkpoints.
_SPEED = "speed.json"


@dataclass(frozen=True)
class Trained:
    """A finished run: its model after `step`, in evaluation mode and on the CPU, and all rows of metrics."""

    model: DualEncoder
    rows: list[MetricRow]
    step: int
    pairs_per_s: float  # of the last process that trained
    accepted_code_changes: list[str]  # see `CheckpointFolder.adopt`
    found: Found = field(default_factory=dict)


def run(plan: TrainingPlan) -> Trained | None:
    """Trains, resumes, or reads the result of a finished run. Returns None on a machine that does not lead.

    Raises:
        ConfigError: the batch does not divide into ranks and batch-norm groups, there are too few images, or this
            machine cannot do what the recipe requires.
        LockedError: another process trains the same run.
        StoppedError: SIGTERM came.
        TrainingError: a rank died, another signal came, or the loss became non-finite.
    """
    recipe, folder, cluster, place = plan.recipe, plan.folder(), plan.infrastructure.cluster, plan.infrastructure.place
    num_nodes = cluster.num_nodes if cluster and place is None else 1
    num_processes = place.world_size if place else recipe.num_processes or default_processes(
        recipe.batch_size // num_nodes, plan.model.batch_norm_group, cores()
    )  # fmt: skip
    _check(plan, num_nodes, num_processes)
    with folder.lock() if plan.leads else nullcontext():
        if plan.leads:
            _find_checkpoint(plan, folder)
        others_wait = num_nodes > 1 or place is not None
        if others_wait or folder.steps()[-1:] != [recipe.num_steps]:
            launch(partial(train_rank, plan), num_processes, recipe.num_threads, cluster, place=place)
        return _result(plan, folder) if plan.leads else None


def train_rank(plan: TrainingPlan, ranks: Ranks) -> None:
    """Trains on one rank: its model and optimiser, from the newest checkpoint that all ranks have, to the last step."""
    recipe, group = plan.recipe, plan.model.batch_norm_group
    if recipe.batch_size % (ranks.world_size * group):  # each machine has compared it with its own number of ranks
        raise ConfigError(
            f"{recipe.section}.batch_size {recipe.batch_size:,} must be a multiple of {ranks.world_size} ranks on all "
            f"machines x model.batch_norm_group {group}; set num_processes alike on every machine"
        )
    saved = _newest(plan, ranks)
    model = new_model(plan, first=ranks.leads and saved is None)
    if saved is None:
        start_alike(model, ranks)
    model.gradient_checkpointing = recipe.gradient_checkpointing
    with freed_memory_kept(), accelerated(model, recipe, ranks.device):
        if shards(recipe, ranks):
            shard(model, ranks)
        else:
            model.to(ranks.device)
        state = new_state(model, recipe, plan.data.train.num_images)
        if (0 if saved is None else saved["step"]) < recipe.num_words_steps:
            shares = shares_of(training_texts(plan.sources()), recipe.words_min_count)
            state.words = Words(shares, model.vision_model.width, recipe, ranks.device)
        if saved is not None:
            state.load(saved)
        if ranks.leads and state.step:
            say(f"{recipe.section}: resuming from step {state.step:,} in {plan.folder().directory}")
        elif ranks.leads:
            num_params = sum(param.numel() for param in model.parameters())
            say(
                f"{recipe.section}: {num_params / 1e6:.2f} M parameters, {plan.data.train.num_images:,} images, "
                f"{recipe.num_steps:,} steps of {recipe.batch_size} on {ranks.world_size} x {ranks.device.type}"
            )
        ranks.barrier()
        train(plan, ranks, state)


def train(plan: TrainingPlan, ranks: Ranks, state: State) -> None:
    """Trains from `state.step` to the recipe's last step, and writes a checkpoint at the end.

    The host waits for no device within a step: the values of steps are read when a row, a validation, a checkpoint or
    a stop is due, before anything is written.

    Raises:
        NonFiniteLossError: the loss is inf or NaN; the checkpoints before it are kept.
        StoppedError: SIGTERM came, and the last whole step is saved.
        TrainingError: a checkpoint could not be written.
    """
    recipe, folder, first = plan.recipe, plan.folder(), state.step
    samples, tokenizer = plan.sources(), plan.tokenizer()
    loader = _loader(plan, ranks, state.model, samples, tokenizer)
    watch = Watch(plan, ranks, state, loader)
    validate = partial(measure, state, samples, tokenizer, ranks, plan.monitoring.validation)
    with stop_requested() as stopped, watch.live(), ExitStack() as stack:
        stack.callback(folder.wait)  # however this ends, what was saved is on disk then
        for split in (samples.val, *(split for split, _ in samples.mixed)):
            if split is not None:
                split.tars.stopped = stopped  # a process told to stop does not wait for an unavailable store
        state.model.train()
        for batch in one_ahead(loader.batches(first, recipe.num_steps), ranks.device):
            state.set_learning_rates()
            if state.words is None:
                gradients = compute_gradients(state.model, recipe, ranks, batch, state.scaling, state.estimates)
            else:
                gradients = compute_word_gradients(state.model, state.words, recipe, ranks, batch)
            state.update(gradients)
            stop = ranks.any(stopped() or folder.has_failed())
            due = Due.after(state.step, plan)
            watch.step(batch)
            if not (stop or any(due)):
                continue
            watch.read(state.read())  # ends the run if a value is not finite
            with watch.paused():
                measured = validate() if due.validation else {}
            watch.row(state.means() if due.row else {}, measured)
            best = due.validation and ranks.any(state.is_best())
            if stop or due.checkpoint or best:
                with watch.paused():
                    _save(state, ranks, folder, best=best)
            if stop:
                break
        # All wait until it is saved: srun and mpirun end the ranks that are left when one has gone.
        at = f"after step {state.step} of {recipe.num_steps}"
        if ranks.any(folder.has_failed(wait=True)):  # the leading rank says why: its folder.wait does
            raise TrainingError(f"stopped {at}: the leading rank could not write a checkpoint")
        if state.step < recipe.num_steps:
            raise StoppedError(f"stopped by SIGTERM {at}; that step is saved; run again to resume")
    ranks.barrier()
    if ranks.leads:
        write_text(folder.directory / _SPEED, json.dumps(round(watch.pairs_per_s(), 1)))


class Due(NamedTuple):
    """What follows a step, besides the next one."""

    row: bool
    validation: bool
    checkpoint: bool

    @classmethod
    def after(cls, step: int, plan: TrainingPlan) -> Due:
        """All of them after the last step. Without anything to measure on there is no validation before it."""
        recipe, measures = plan.recipe, plan.data.val.num_images > 0 or plan.monitoring.validation is not None
        if step == recipe.num_steps:
            return cls(row=True, validation=True, checkpoint=True)
        each = recipe.log_every_steps, recipe.validate_every_steps, recipe.checkpoint_every_steps
        row, validation, checkpoint = (step % steps == 0 for steps in each)
        return cls(row, validation and measures, checkpoint)


def _save(state: State, ranks: Ranks, folder: CheckpointFolder, *, best: bool) -> None:
    values = state.saved()  # all ranks gather what is sharded, and the leading one has it
    if ranks.leads:
        folder.save(state.step, values, best=best)


def _loader(
    plan: TrainingPlan, ranks: Ranks, model: DualEncoder, samples: SampleSources, tokenizer: TextTokenizer
) -> TrainLoader:
    recipe = plan.recipe
    alike = recipe.alike_share and recipe.section == "pretrain"
    return TrainLoader(
        samples.mixed,
        Augmentation(
            tokenizer, plan.model.image_px, model.vision_model.num_blocks, recipe.flip, recipe.crop_scale,
            recipe.phrase_dropout, recipe.sentence_share,
        ),
        seed=recipe.seed, batch_size=recipe.batch_size, rank=ranks.rank, world_size=ranks.world_size,
        pin=ranks.device.type == "cuda",
        alike=Alike(recipe.alike_share, recipe.alike_group, recipe.alike_cluster) if alike else None,
    )  # fmt: skip


@contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM came."""
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def _find_checkpoint(plan: TrainingPlan, folder: CheckpointFolder) -> None:
    """Gets what the run resumes from, and says what else there is."""
    if plan.accept_code_change is not None:
        folder.adopt(plan.accept_code_change)
    folder.fetch()
    if (step := folder.other_code_step()) is not None:
        say(
            f"{plan.recipe.section}: a run of these parameters and data is at step {step:,} under other code, another "
            "version of torch or of a tower's library, or another kind of device; this one starts from the "
            "beginning. --accept-code-change WHY resumes that one instead"
        )


def _result(plan: TrainingPlan, folder: CheckpointFolder) -> Trained:
    """Reads what a finished run has made. Raises TrainingError if its last checkpoint is not there."""
    saved = folder.load_latest(torch.device("cpu"))
    if saved is None or saved["step"] != plan.recipe.num_steps:
        raise TrainingError(f"{folder.directory}: training ended without its last checkpoint; run the stage again")
    speed, rows, found = folder.directory / _SPEED, saved["rows"], saved["found"]
    if plan.recipe.export == "best":
        saved = folder.load(require_best(rows, plan.recipe))
    model = new_model(plan, first=False)
    model.load_state_dict(saved["model"])
    pairs_per_s = json.loads(speed.read_text()) if speed.exists() else 0.0
    return Trained(model.eval(), rows, saved["step"], pairs_per_s, folder.accepted(), found)


def require_best(rows: Sequence[MetricRow], recipe: Recipe) -> int:
    """As `best_step`. Raises ConfigError if nothing was measured."""
    step = best_step(rows, recipe.best_metric)
    if step is None:
        raise ConfigError(f"{recipe.section}: no step is the best one: none has a {recipe.best_metric} (best_metric)")
    return step


def _check(plan: TrainingPlan, num_nodes: int, num_processes: int) -> None:
    """Raises ConfigError if values of the recipe contradict each other, the model, the launcher or this machine."""
    recipe, place = plan.recipe, plan.infrastructure.place
    here = place.local_world_size if place else num_processes
    if place and recipe.num_processes not in (None, 1, here):
        raise ConfigError(
            f"{recipe.section}.num_processes {recipe.num_processes}: the launcher has started {here} ranks on this "
            "machine; null takes them"
        )
    if wrong := recipe.against(plan.model, num_nodes, num_processes):
        raise ConfigError(wrong)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown_its_own = place and gpus == 1  # as `srun --gpus-per-task=1` does
    if gpus and not shown_its_own and here > gpus:
        raise ConfigError(
            f"{recipe.section}.num_processes {here}: each trains on a GPU of its own, and this machine has {gpus}; "
            "null takes as many as the batch divides into"
        )
    require_compiler(recipe)
    require_size(plan.model)
    if plan.leads and plan.inputs.initial is None and not plan.folder().steps():
        require_given(plan.model, recipe, plan.vocab_size, plan.tokenizer())


def new_model(plan: TrainingPlan, *, first: bool) -> DualEncoder:
    """The model with its first weights; or with any, where others are about to replace them."""
    recipe, initial = plan.recipe, plan.inputs.initial
    if first and initial is not None:
        model = load_model(initial, plan.model)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = DualEncoder(
                plan.model, plan.vocab_size,
                text_init_std=recipe.text_init_std, position_init_scale=recipe.position_init_scale,
            )  # fmt: skip
        if first and names_of(recipe):
            model.load_state_dict(given_weights(model, recipe, plan.tokenizer()), strict=False)
    model.lock(recipe.locked)
    model.log_temperature.requires_grad_(recipe.learn_temperature)
    return model


def start_alike(model: DualEncoder, ranks: Ranks) -> None:
    """Gives a model on the CPU the leading rank's weights: equal seeds draw other digits on CPUs of other features."""
    for tensor in model.state_dict().values():
        ranks.lead(tensor)


def _newest(plan: TrainingPlan, ranks: Ranks) -> dict[str, Any] | None:
    """Loads the newest checkpoint that all ranks have, each by itself. Raises TrainingError: some have none at all."""
    folder = plan.folder()
    if not plan.leads:  # the leading machine has fetched it before
        folder.fetch()
    saved = folder.load_latest(torch.device("cpu"))
    own = 0 if saved is None else int(saved["step"])
    steps = ranks.gather(torch.tensor([own], device=ranks.device)).tolist()
    if min(steps) == 0 < max(steps):
        raise TrainingError(
            f"{plan.recipe.section}: rank {steps.index(0)} of {ranks.world_size} has no checkpoint to resume from, and "
            f"others have one of step {max(steps):,}: let the machines share paths.checkpoints, or set "
            "store.checkpoints"
        )
    return saved if own == min(steps) else folder.load(min(steps))
