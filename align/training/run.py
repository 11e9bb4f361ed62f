"""A plan in, trained weights out: any number of processes, resumable.

A finished run only returns its result, and an interrupted one resumes (see `TrainingPlan.name`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from align.config.recipe import Recipe
from align.display.console import say
from align.durable.cores import cores
from align.durable.files import write_text
from align.durable.memory import freed_memory_kept
from align.errors import ConfigError, TrainingError
from align.model.dual_encoder import DualEncoder, load_model
from align.model.library_towers import require_size
from align.training.acceleration import accelerated, require_compiler
from align.training.batches.index import SplitIndex
from align.training.batches.reading import STORE_PATIENCE_S
from align.training.batches.samples import OnCorrupt, SampleSources, SplitSamples
from align.training.given_towers import given_weights, names_of, require_given
from align.training.loop import best_step, train
from align.training.ranks.process_group import Ranks, default_processes, launch
from align.training.ranks.sharding import shard, shards
from align.training.run_plan import TrainingPlan
from align.training.state import Found, MetricRow, new_state


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        model: in evaluation mode, on the CPU.
        rows: all rows of metrics.
        found: what some texts found at each validation.
        step: the one that the model is of.
        pairs_per_s: over the steps of the last process that trained.
        accepted_code_changes: reasons given by people, see `CheckpointFolder.adopt`.
    """

    model: DualEncoder
    rows: list[MetricRow]
    step: int
    pairs_per_s: float
    accepted_code_changes: list[str]
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
    recipe, cluster, place = plan.recipe, plan.infrastructure.cluster, plan.infrastructure.place
    num_nodes = cluster.num_nodes if cluster and place is None else 1
    num_processes = place.world_size if place else recipe.num_processes or default_processes(
        recipe.batch_size // num_nodes, plan.model.batch_norm_group, cores()
    )  # fmt: skip
    _check(plan, num_nodes, num_processes)

    def start() -> None:
        launch(functools.partial(_train_rank, plan), num_processes, recipe.num_threads, cluster, place=place)

    if not plan.leads:
        start()
        return None
    folder = plan.folder()
    with folder.lock():
        if plan.accept_code_change is not None:
            folder.adopt(plan.accept_code_change)
        folder.fetch()
        if (step := folder.other_code_step()) is not None:
            say(
                f"{recipe.section}: a run of these parameters and data is at step {step:,} under other code, another "
                "version of torch or of a tower's library, or another kind of device; this one starts from the "
                "beginning. --accept-code-change WHY resumes that one instead"
            )
        others_wait = num_nodes > 1 or place is not None
        if others_wait or folder.steps()[-1:] != [recipe.num_steps]:
            start()
        saved = folder.load_latest(torch.device("cpu"))
        if saved is None or saved["step"] != recipe.num_steps:
            raise TrainingError(f"{folder.directory}: training ended without its last checkpoint; run the stage again")
        speed, rows, found = folder.directory / "speed.json", saved["rows"], saved["found"]
        if recipe.export == "best":
            saved = folder.load(require_best(rows, recipe))
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
    place = plan.infrastructure.place
    here = place.local_world_size if place else num_processes
    if place and plan.recipe.num_processes not in (None, 1, here):
        raise ConfigError(
            f"{plan.recipe.section}.num_processes {plan.recipe.num_processes}: the launcher has started {here} ranks "
            "on this machine; null takes them"
        )
    if wrong := plan.recipe.against(plan.model, num_nodes, num_processes):
        raise ConfigError(wrong)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown_its_own = place and gpus == 1  # as `srun --gpus-per-task=1` does
    if gpus and not shown_its_own and here > gpus:
        raise ConfigError(
            f"{plan.recipe.section}.num_processes {here}: each trains on a GPU of its own, and "
            f"this machine has {gpus}; null takes as many as the batch divides into"
        )
    if plan.recipe.compile:
        require_compiler()
    require_size(plan.model)
    if plan.leads and plan.inputs.initial is None and not plan.folder().steps():
        require_given(plan.model, plan.recipe, plan.vocab_size, plan.tokenizer())


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
            given = given_weights(model, recipe, plan.tokenizer())
            model.load_state_dict(given, strict=False)
    model.lock(recipe.locked)
    model.log_temperature.requires_grad_(recipe.learn_temperature)
    return model


def _train_rank(plan: TrainingPlan, ranks: Ranks) -> None:
    group = plan.model.batch_norm_group
    if plan.recipe.batch_size % (ranks.world_size * group):  # each machine has compared it with its own number of ranks
        raise ConfigError(
            f"{plan.recipe.section}.batch_size {plan.recipe.batch_size:,} must be a multiple of {ranks.world_size} "
            f"ranks on all machines x model.batch_norm_group {group}; set num_processes alike on every machine"
        )
    saved = _newest(plan, ranks)
    model = new_model(plan, first=ranks.leads and saved is None)
    if saved is None:
        start_alike(model, ranks)
    model.gradient_checkpointing = plan.recipe.gradient_checkpointing
    with freed_memory_kept(), accelerated(model, plan.recipe, ranks.device):
        if shards(plan.recipe, ranks):
            shard(model, ranks)
        else:
            model.to(ranks.device)
        _train_model(plan, model, ranks, saved)


def start_alike(model: DualEncoder, ranks: Ranks) -> None:
    """Gives a model on the CPU the leading rank's weights: equal seeds draw other digits on CPUs of other features."""
    for tensor in model.state_dict().values():
        ranks.lead(tensor)


def _newest(plan: TrainingPlan, ranks: Ranks) -> dict[str, Any] | None:
    """The newest checkpoint that all ranks have: each reads it itself, so nothing of it travels among them.

    Raises:
        TrainingError: some machines have none, and others have one.
    """
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


def _train_model(plan: TrainingPlan, model: DualEncoder, ranks: Ranks, saved: dict[str, Any] | None) -> None:
    recipe, folder = plan.recipe, plan.folder()
    state = new_state(model, recipe)
    if saved is not None:
        state.load(saved)
        if ranks.leads:
            say(f"{recipe.section}: resuming from step {state.step:,} in {folder.directory}")
    elif ranks.leads:
        num_params = sum(param.numel() for param in state.model.parameters())
        say(
            f"{recipe.section}: {num_params / 1e6:.2f} M parameters, {plan.data.train.num_images:,} images, "
            f"{recipe.num_steps:,} steps of {recipe.batch_size} on {ranks.world_size} x {ranks.device.type}"
        )
    ranks.barrier()
    pairs_per_s = train(
        state, recipe, ranks, samples=sources(plan), tokenizer=plan.tokenizer(), folder=folder,
        monitoring=plan.monitoring,
    )  # fmt: skip
    if ranks.leads:
        write_text(folder.directory / "speed.json", json.dumps(round(pairs_per_s, 1)))


def sources(plan: TrainingPlan) -> SampleSources:
    """What a run reads."""
    recipe, data = plan.recipe, plan.data

    def samples(index: SplitIndex, on_corrupt: OnCorrupt = recipe.on_corrupt_shard) -> SplitSamples:
        on_corrupt = "quarantine" if index.given else on_corrupt  # nothing has decoded their pictures before
        return SplitSamples(
            index,
            plan.model.resize_px,
            plan.infrastructure.tars,
            patience_s=STORE_PATIENCE_S,
            on_corrupt=on_corrupt,
        )

    extra = zip(data.extra, recipe.extra_shards, strict=True)
    return SampleSources(
        train=samples(data.train),
        val=samples(data.val, on_corrupt="stop") if data.val.num_images else None,
        extra=tuple((samples(index), more.weight) for index, more in extra),
    )
