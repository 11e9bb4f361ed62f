"""A training run as plain data: what it reads, how it trains, and where it keeps its checkpoints.

It is settled once, and every rank gets a pickled copy. The checkpoint folder is named after everything that determines
the result: a finished run is only exported, an interrupted one resumes, and a changed one starts from the beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from align.config.infrastructure import ClusterConfig, HealthConfig
from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.durable.checkpoint import CheckpointFolder, run_key
from align.durable.files import sha256_file
from align.errors import ConfigError
from align.formats.model_folder import TOKENIZER, read_config, weights_digest
from align.formats.shards import MANIFEST, read_manifest
from align.interfaces.store import Mirror, Tars
from align.model.dual_encoder import DualEncoder
from align.model.tokenizer import TextTokenizer
from align.project import provenance
from align.services.job import Place
from align.training.batches.index import SplitIndex
from align.training.batches.reading import STORE_PATIENCE_S
from align.training.batches.samples import SampleSources, SplitSamples, first_pairs
from align.training.ranks.process_group import Ranks
from align.training.state import MetricRow

#: Measures a model on evaluation sets; all ranks call it, and get the same.
Validation = Callable[[DualEncoder, TextTokenizer, Ranks], MetricRow]


@dataclass(frozen=True)
class TrainingInputs:
    """The folders that a run reads; `initial` is that of the model to start from, None starts from scratch."""

    shards: Path
    tokenizer: Path
    initial: Path | None = None


@dataclass(frozen=True)
class Work:
    """What a stage, the recipe's `section`, trains; the model is that before the recipe's own picture size."""

    recipe: Recipe
    model: ModelConfig
    inputs: TrainingInputs


@dataclass(frozen=True)
class Infrastructure:
    """Where a run trains; none of it changes the result.

    Attributes:
        tars, mirror: object stores: of tars missing from the shard folders, and of copies of the checkpoints.
        cluster: the machines that train together; None: this one.
        place: this process among the ranks that a launcher has started; None: it starts its ranks.
    """

    tars: Tars | None = None
    mirror: Mirror | None = None
    cluster: ClusterConfig | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Monitoring:
    """How a run is watched; none of it changes the result.

    Attributes:
        log, validation: take the metrics of a row, and its step, on the leading rank; measure a model on evaluation
            sets. Both are picklable if there are several processes.
        health: what its devices are; None: there are no warnings, and nothing is said of the use of devices.
    """

    log: Callable[[dict[str, float], int], None] | None = None
    health: HealthConfig | None = None
    validation: Validation | None = None


THIS_MACHINE, UNWATCHED = Infrastructure(), Monitoring()


@dataclass(frozen=True)
class TrainingData:
    """Where the samples of a run are stored, and what they are.

    Attributes:
        train, val: the splits of the main shards, whose manifest has `digest`; of `train` the first `max_pairs`.
        extra: the training splits of `extra_shards`, in the same order.
        not_gated: digests of those of all these that are given tars, which no quality gate has judged.
    """

    train: SplitIndex
    val: SplitIndex
    extra: tuple[SplitIndex, ...]
    num_training_pairs: int
    digest: str
    not_gated: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a rank needs.

    Attributes:
        name: of the run, after what determines its result, and of its subfolder of `checkpoints`.
        vocab_size: rows of the word embedding.
        accept_code_change: why a run that began under other code may be resumed.
    """

    name: str
    recipe: Recipe
    model: ModelConfig
    vocab_size: int
    inputs: TrainingInputs
    data: TrainingData
    checkpoints: Path
    infrastructure: Infrastructure
    monitoring: Monitoring
    accept_code_change: str | None

    @property
    def leads(self) -> bool:
        """Whether this machine, or this rank of a launcher, writes checkpoints, reports and the model."""
        cluster, place = self.infrastructure.cluster, self.infrastructure.place
        return place.rank == 0 if place else cluster is None or cluster.node_rank == 0

    def folder(self) -> CheckpointFolder:
        """The folder of the run's checkpoints."""
        return CheckpointFolder(self.checkpoints / self.name, self.recipe.keep_checkpoints, self.infrastructure.mirror)

    def tokenizer(self) -> TextTokenizer:
        """Loads the tokenizer of the run's texts."""
        return TextTokenizer.load(self.inputs.tokenizer, self.model.max_tokens)

    def sources(self) -> SampleSources:
        """What a rank reads."""
        recipe, data, tars = self.recipe, self.data, self.infrastructure.tars
        samples = partial(SplitSamples, resize_px=self.model.resize_px, store=tars, patience_s=STORE_PATIENCE_S)
        mixed = [samples(index, on_corrupt=recipe.on_corrupt_shard) for index in (data.train, *data.extra)]
        for split in mixed:
            split.text_balance = recipe.text_balance if recipe.section == "pretrain" else None
        weights = [1.0, *(more.weight for more in recipe.extra_shards)]
        val = samples(data.val) if data.val.num_images else None
        return SampleSources(mixed[0], val, [*zip(mixed, weights, strict=True)])


def make_plan(
    work: Work, checkpoints: Path,
    *, infrastructure: Infrastructure = THIS_MACHINE, monitoring: Monitoring = UNWATCHED,
    accept_code_change: str | None = None,
) -> TrainingPlan:  # fmt: skip
    """Settles a run over the shards that `work` reads, and over its recipe's `extra_shards`.

    Raises:
        DataError: shards, tokenizer or the model to start from are missing.
        ConfigError: the shards' images are smaller than the model requires, extra shards have another digest than the
            recipe says, or the model to start from has another vocabulary.
    """
    recipe, inputs, model = work.recipe, work.inputs, work.recipe.trained(work.model)
    main = read_manifest(inputs.shards, given=True)
    extra = [(more.path, read_manifest(more.path, given=True)) for more in recipe.extra_shards]
    for shards, manifest in ((inputs.shards, main), *extra):
        if manifest.image_px < model.resize_px and manifest.left_out is None:
            have = f"{shards} holds images of {manifest.image_px} px"
            raise _too_small(recipe, have, model.resize_px, inputs.initial)
    for (shards, manifest), expected in zip(extra, recipe.extra_shards, strict=True):
        if manifest.digest != expected.digest:
            raise ConfigError(
                f"{shards / MANIFEST} has the digest {manifest.digest}, {recipe.section}.extra_shards says "
                f"{expected.digest}; write the one that you mean"
            )
    tars, train = infrastructure.tars, main.splits["train"]
    index, num_pairs = SplitIndex.of(inputs.shards, main, "train", tars), train.num_pairs
    if recipe.max_pairs is not None:
        index = first_pairs(index, [shard.num_pairs for shard in train.shards], recipe.max_pairs, tars)
        num_pairs = min(num_pairs, recipe.max_pairs)
    data = TrainingData(
        index, SplitIndex.of(inputs.shards, main, "val", tars),
        tuple(SplitIndex.of(shards, manifest, "train", tars) for shards, manifest in extra), num_pairs, main.digest,
        not_gated=tuple(one.digest for _, one in ((None, main), *extra) if one.left_out is not None),
    )  # fmt: skip
    vocab_size = TextTokenizer.load(inputs.tokenizer, model.max_tokens).vocab_size
    if inputs.initial is not None and (known := read_config(inputs.initial).vocab_size) != vocab_size:
        raise ConfigError(f"{inputs.initial} was trained with {known} tokens, {inputs.tokenizer} has {vocab_size}")
    return TrainingPlan(
        _name(recipe, model, inputs, data.digest), recipe, model, vocab_size, inputs, data, checkpoints,
        infrastructure, monitoring, accept_code_change,
    )  # fmt: skip


def _name(recipe: Recipe, model: ModelConfig, inputs: TrainingInputs, data: str) -> str:
    """Names a run after everything that determines its result: values, data, and what computes.

    The latter are our code, versions of torch and of towers' libraries, and the kind of device, whose kernels round
    differently.
    """
    values = {
        "recipe": recipe.deciding_values(),
        "model": model.model_dump(mode="json"),
        "initial": weights_digest(inputs.initial) if inputs.initial else None,
        "tokenizer": sha256_file(inputs.tokenizer / TOKENIZER),
        "data": data,
    }
    version = torch.__version__.partition("+")[0]  # what follows the sign names a build, which the kind covers
    kind, code = "cuda" if torch.cuda.is_available() else "cpu", provenance.digest("align.training.train")
    computes = hashlib.sha256("\n".join([code, version, kind, *model.versions]).encode()).hexdigest()
    return f"{recipe.section}-{run_key(values, computes)}"


def _too_small(recipe: Recipe, have: str, need_px: int, initial: Path | None) -> ConfigError:
    """Says which value is the user's: a model that training starts from keeps its picture size by default."""
    own = "resize_px" if recipe.resize_px else "image_px" if recipe.image_px else None
    if own is not None:
        why = f"{recipe.section}.{own} {getattr(recipe, own)} needs {need_px}: lower it, or"
    elif initial is None:
        why = f"model.resize_px is {need_px}: lower it, or"
    else:
        why = f"the model in {initial} needs {need_px}:"
    remake = "`align shard`" if initial is None else "`dvc repro`, or `align shard` and `align validate_shards`"
    again = f"set shard.image_px to {need_px} or more in params.yaml and make the shards again ({remake})"
    return ConfigError(f"{have}, {why} {again}")
