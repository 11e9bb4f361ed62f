"""A whole training run: plan in, trained weights and curves out; any number of processes, resumable.

The plan is plain data that travels to the ranks. The run's folder is keyed by everything that determines the result: a
finished run only exports, an interrupted one goes on, and a changed one starts anew.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from align import provenance
from align.config.cluster import ClusterConfig
from align.config.health import HealthConfig
from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.console import say
from align.errors import ConfigError, TrainingError
from align.files import replace_directory, sha256_file, write_text
from align.memory import freed_memory_kept
from align.model.dual_encoder import DualEncoder, load_model, save_model
from align.model.tokenizer import TextTokenizer
from align.protocols.store import Mirror, Tars
from align.report import Report, write_report
from align.training.acceleration import accelerated, require_compiler
from align.training.checkpoint import CheckpointFolder, run_key
from align.training.curves import Row, write_curves
from align.training.index import SplitIndex, read_outline
from align.training.loop import Log, train
from align.training.process_group import Ranks, default_processes, launch
from align.training.samples import OnCorrupt, Samples
from align.training.sharding import shard
from align.training.state import load_weights, new_state

#: Fields of a recipe that change no result beyond rounding: a run goes on after a change of them.
_NOT_THE_RESULT = {
    *("keep_checkpoints", "checkpoint_every_steps", "best_metric", "micro_batch", "num_processes", "num_threads"),
    *("gradient_checkpointing", "shard_weights", "compile", "cudnn_benchmark"),
    *("num_loader_threads", "store_patience_s"),
    "on_corrupt_shard",  # what either of them lets train is the same; so a run that stopped can go on in quarantine
    "extra_shards",  # by their digests, see below
}


@dataclass(frozen=True)
class Plan:
    """Everything a rank needs.

    Attributes:
        initial: folder of the model to start from; None starts from scratch.
        data_digest: of the shards, from their manifest.
        extra_splits: of `extra_shards`, in their order.
        tars: the object store, for tars that are not in the folders.
        health: bounds of what is watched; None: nothing is.
        mirror: an object store that checkpoints go to, besides.
        cluster: the machines that train together; None: this one.
        accept_code_change: why a run of other code may be gone on with.
        log: live logging, called on the leading rank; picklable where there are several processes.
    """

    recipe: Recipe
    model: ModelConfig
    initial: Path | None
    tokenizer: Path
    train_split: SplitIndex
    val_split: SplitIndex
    num_training_pairs: int
    data_digest: str
    checkpoints: Path
    log: Log | None = None
    health: HealthConfig | None = None
    extra_splits: tuple[SplitIndex, ...] = ()
    tars: Tars | None = None
    mirror: Mirror | None = None
    accept_code_change: str | None = None
    cluster: ClusterConfig | None = None

    @property
    def leads(self) -> bool:
        """Whether this machine writes checkpoints, reports and the model."""
        return self.cluster is None or self.cluster.node_rank == 0

    def folder(self) -> CheckpointFolder:
        """Where the run's checkpoints lie."""
        recipe = self.recipe.model_dump(mode="json", exclude=_NOT_THE_RESULT)
        values = {
            "recipe": recipe,
            "model": self.model.model_dump(mode="json"),
            "initial": sha256_file(self.initial / "model.safetensors") if self.initial else None,
            "tokenizer": sha256_file(self.tokenizer / "tokenizer.json"),
            "data": [self.data_digest, *((more.digest, more.weight) for more in self.recipe.extra_shards)],
        }
        name = f"{self.recipe.section}-{run_key(values, provenance.digest(__name__))}"
        return CheckpointFolder(self.checkpoints / name, self.recipe.keep_checkpoints, self.mirror)


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    model: DualEncoder
    rows: list[Row]
    pairs_per_s: float
    accepted_code_changes: list[str]


def make_plan(
    recipe: Recipe, model: ModelConfig, *, initial: Path | None, shards: Path, tokenizer: Path, checkpoints: Path,
    log: Log | None = None, tars: Tars | None = None, health: HealthConfig | None = None,
    mirror: Mirror | None = None, accept_code_change: str | None = None,
    cluster: ClusterConfig | None = None,
) -> Plan:  # fmt: skip
    """A plan over `data/shards`, and over `extra_shards`.

    Raises:
        DataError: shards or tokenizer are missing.
        ConfigError: the shards' images are smaller than the model wants them, or extra ones are not of their digest.
    """
    outline, extra = read_outline(shards), [read_outline(more.path) for more in recipe.extra_shards]
    for one in (outline, *extra):
        if one.manifest.image_px < model.resize_px:
            raise ConfigError(
                f"{one.path.parent} holds images of {one.manifest.image_px} px, model.resize_px is {model.resize_px}: "
                "lower it, or raise shard.image_px and run `align shard` again"
            )
    for one, wanted in zip(extra, recipe.extra_shards, strict=True):
        if one.manifest.digest != wanted.digest:
            raise ConfigError(
                f"{one.path} has the digest {one.manifest.digest}, {recipe.section}.extra_shards says {wanted.digest}; "
                "write the one that you mean"
            )
    manifest = outline.manifest
    return Plan(
        recipe=recipe, model=model, initial=initial, tokenizer=tokenizer,
        train_split=outline.split("train", tars), val_split=outline.split("val", tars),
        num_training_pairs=manifest.splits["train"].num_pairs, data_digest=manifest.digest, checkpoints=checkpoints,
        log=log, extra_splits=tuple(one.split("train", tars) for one in extra), tars=tars,
        health=health, mirror=mirror, accept_code_change=accept_code_change,
        cluster=cluster,
    )  # fmt: skip


def run(plan: Plan) -> Trained | None:
    """Trains, or goes on, or only reads the result of a finished run. None on a machine that does not lead.

    Raises:
        ConfigError: the batch does not divide into ranks and batch-norm groups, or there are too few images, or this
            machine cannot do what the recipe asks for.
        LockedError: another process trains this very run.
        TrainingError: a rank died, a signal came, or the loss became non-finite.
    """
    recipe, group = plan.recipe, plan.model.batch_norm_group
    nodes = plan.cluster.num_nodes if plan.cluster else 1
    num_processes = recipe.num_processes or default_processes(recipe.batch_size // nodes, group)
    if recipe.batch_size % (num_processes * nodes * group):
        raise ConfigError(
            f"{recipe.section}.batch_size {recipe.batch_size} must be a multiple of "
            + (f"cluster.num_nodes {nodes} x " if nodes > 1 else "")
            + f"num_processes {num_processes} x model.batch_norm_group {group}"
        )
    if recipe.micro_batch and plan.model.whole_batch:
        raise ConfigError(
            f"{recipe.section}.micro_batch needs model.batch_norm: group; statistics of a whole batch "
            f"({plan.model.batch_norm}) cannot be had from its parts"
        )
    if recipe.micro_batch and recipe.micro_batch % group:
        raise ConfigError(
            f"{recipe.section}.micro_batch {recipe.micro_batch} must be a multiple of model.batch_norm_group {group}"
        )
    if recipe.compile and plan.model.batch_norm == "sync":
        raise ConfigError(
            f"{recipe.section}.compile needs model.batch_norm: group or batch; sync asks other ranks within a block, "
            "which is not compiled"
        )
    if recipe.compile and not torch.cuda.is_available():
        require_compiler()
    if (recipe.loss == "sigmoid") != (plan.model.logit_bias_init is not None):
        raise ConfigError(
            f"{recipe.section}.loss {recipe.loss} and model.logit_bias_init {plan.model.logit_bias_init} do not go "
            "together: the sigmoid loss needs a bias, such as -10, and ALIGN's has none (null)"
        )
    start = functools.partial(launch, functools.partial(_train_rank, plan), num_processes, recipe.num_threads)
    if not plan.leads:
        start(plan.cluster)
        return None
    folder = plan.folder()
    with folder.lock():
        if plan.accept_code_change is not None:
            folder.adopt(plan.accept_code_change)
        folder.fetch()
        if nodes > 1 or folder.steps()[-1:] != [recipe.num_steps]:  # the other machines wait for this one
            start(plan.cluster)
        saved = folder.load_latest(torch.device("cpu"))
        if saved is None or saved["step"] != recipe.num_steps:
            raise TrainingError(f"{folder.directory}: training ended without its last checkpoint; run the stage again")
        speed = folder.directory / "speed.json"
        model = _build(plan)
        load_weights(model, saved)
        pairs_per_s = json.loads(speed.read_text()) if speed.exists() else 0.0
        return Trained(model.eval(), saved["rows"], pairs_per_s, folder.accepted())


def _build(plan: Plan) -> DualEncoder:
    tokenizer = TextTokenizer.load(plan.tokenizer, plan.model.max_tokens)
    if plan.initial is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.recipe.seed)
            return DualEncoder(plan.model, tokenizer.vocab_size)
    model = load_model(plan.initial)
    if model.vocab_size != tokenizer.vocab_size:
        raise ConfigError(
            f"{plan.initial} was trained with {model.vocab_size} tokens, {plan.tokenizer} has {tokenizer.vocab_size}"
        )
    return model


def _train_rank(plan: Plan, ranks: Ranks) -> None:
    model = _build(plan)
    model.gradient_checkpointing = plan.recipe.gradient_checkpointing
    with freed_memory_kept(), accelerated(model, plan.recipe, ranks.device):
        if plan.recipe.shard_weights and ranks.world_size > 1:  # one rank has all of them anyway
            shard(model, ranks)
        else:
            model.to(ranks.device)
        _train_model(plan, model, ranks)


def _train_model(plan: Plan, model: DualEncoder, ranks: Ranks) -> None:
    recipe, folder = plan.recipe, plan.folder()
    state = new_state(model, recipe)
    # from the leading machine's disk, which the others may not have
    saved = ranks.share(folder.load_latest(torch.device("cpu")) if ranks.leads else None)
    if saved is not None:
        state.load(saved)
        if ranks.leads:
            say(f"{recipe.section}: going on from step {state.step:,} in {folder.directory}")
    elif ranks.leads:
        num_params = sum(param.numel() for param in state.model.parameters())
        say(
            f"{recipe.section}: {num_params / 1e6:.2f} M parameters, {plan.train_split.num_images:,} images, "
            f"{recipe.num_steps:,} steps of {recipe.batch_size} on {ranks.world_size} x {ranks.device.type}"
        )
    ranks.barrier()

    def samples(index: SplitIndex, on_corrupt: OnCorrupt) -> Samples:
        patience_s = recipe.store_patience_s
        return Samples(index, plan.model.resize_px, plan.tars, patience_s=patience_s, on_corrupt=on_corrupt)

    pairs_per_s = train(
        state, recipe, ranks,
        train_samples=samples(plan.train_split, recipe.on_corrupt_shard),
        val_samples=samples(plan.val_split, "stop") if plan.val_split.num_images else None,
        tokenizer=TextTokenizer.load(plan.tokenizer, plan.model.max_tokens), folder=folder, log=plan.log,
        health=plan.health,
        extra_samples=[
            (samples(index, recipe.on_corrupt_shard), more.weight)
            for index, more in zip(plan.extra_splits, recipe.extra_shards, strict=True)
        ],
    )  # fmt: skip
    if ranks.leads:
        write_text(folder.directory / "speed.json", json.dumps(round(pairs_per_s, 1)))


class TrainingReport(Report):
    """Result of a training stage; `accepted_code_changes` are reasons given by people, see `CheckpointFolder.adopt`."""

    num_parameters: int
    num_training_images: int
    num_training_pairs: int
    accepted_code_changes: list[str]


def train_stage(plan: Plan, *, out: Path, reports: Path) -> tuple[TrainingReport, float] | None:
    """Runs a plan and writes the model folder, the curves and the report.

    Args:
        plan: the run.
        out: folder of the trained model; replaced whole.
        reports: folder of curves and report; replaced whole.

    Returns:
        The report, and pairs per second of the training steps; None on a machine that does not lead.
    """
    trained = run(plan)
    if trained is None:
        return None
    stage = plan.recipe.section
    last = {name: value for row in trained.rows for name, value in row.items() if name != "step"}
    report = TrainingReport(
        num_parameters=sum(param.numel() for param in trained.model.parameters()),
        num_training_images=plan.train_split.num_images,
        num_training_pairs=plan.num_training_pairs,
        accepted_code_changes=trained.accepted_code_changes,
        metrics={f"{stage}/{name}": value for name, value in last.items()}
        | {f"{stage}/num_steps": plan.recipe.num_steps},
    )
    with replace_directory(reports) as part:
        write_curves(trained.rows, part)
        write_report(report, part)
    with replace_directory(out) as part:
        save_model(trained.model, part, stage=stage)
    return report, trained.pairs_per_s
