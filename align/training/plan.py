"""A training run as plain data: what it reads, how it trains, and where it keeps its checkpoints.

Every rank gets a pickled copy. The checkpoint folder is named after everything that determines the result: a finished
run is only exported, an interrupted one resumes, and a changed one starts from the beginning.

A teacher's embeddings are of each picture as it is in its shard, and of its whole text. What training shows the student
may be less: a crop, perhaps mirrored, or some of the phrases (`phrase_dropout`). MobileCLIP stores embeddings of
several augmentations of a picture instead; here the teacher's targets are those of the sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from align.config.cluster import ClusterConfig
from align.config.model import ModelConfig
from align.config.recipe import Recipe
from align.durable.checkpoint import CheckpointFolder, run_key
from align.durable.files import sha256_file
from align.errors import ConfigError
from align.formats.model_folder import TOKENIZER, weights_digest
from align.formats.stored_embeds import StoredEmbeds, read_embeds
from align.interfaces.store import Mirror, Tars
from align.project import provenance
from align.training.batches.index import Outline, SplitIndex, read_outline
from align.training.batches.phases import sizes
from align.training.loop import UNWATCHED, Monitoring

R = TypeVar("R", bound=Recipe)

#: The module that turns a plan into weights: its code is part of the run's key.
_TRAINING = "align.training.run"


@dataclass(frozen=True)
class TrainingInputs:
    """The artefacts that a run reads.

    Attributes:
        shards: folder of the shards.
        tokenizer: folder of the tokenizer, which the trained model's folder gets a copy of.
        initial: folder of the model to start from; None starts from scratch.
    """

    shards: Path
    tokenizer: Path
    initial: Path | None = None


@dataclass(frozen=True)
class Infrastructure:
    """Where a run trains; none of it changes the result.

    Attributes:
        tars: the object store that holds tars missing from the shard folders.
        mirror: an object store that also keeps the checkpoints.
        cluster: the machines that train together; None: this one.
    """

    tars: Tars | None = None
    mirror: Mirror | None = None
    cluster: ClusterConfig | None = None


THIS_MACHINE = Infrastructure()


@dataclass(frozen=True)
class TrainingData:
    """Where the samples of a run are stored, and what they are.

    Attributes:
        train, val: the splits of the main shards.
        extra: the training splits of `extra_shards`, in the same order.
        num_training_pairs: of the main shards.
        digest: of the main shards, from their manifest.
        teacher: another model's embeddings of `train` and of each of `extra`; empty: there is no teacher.
    """

    train: SplitIndex
    val: SplitIndex
    extra: tuple[SplitIndex, ...]
    num_training_pairs: int
    digest: str
    teacher: tuple[StoredEmbeds, ...] = ()


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a rank needs.

    Attributes:
        checkpoints: the folder that has one subfolder per run.
        accept_code_change: why a run that began under other code may be resumed.
    """

    recipe: Recipe
    model: ModelConfig
    inputs: TrainingInputs
    data: TrainingData
    checkpoints: Path
    infrastructure: Infrastructure
    monitoring: Monitoring
    accept_code_change: str | None

    @property
    def leads(self) -> bool:
        """Whether this machine writes checkpoints, reports and the model."""
        cluster = self.infrastructure.cluster
        return cluster is None or cluster.node_rank == 0

    def folder(self) -> CheckpointFolder:
        """The folder of the run's checkpoints, named after what determines the result."""
        initial = self.inputs.initial
        values = {
            "recipe": self.recipe.deciding_values(),
            "model": self.model.model_dump(mode="json"),
            "initial": weights_digest(initial) if initial else None,
            "tokenizer": sha256_file(self.inputs.tokenizer / TOKENIZER),
            "data": self.data.digest,
        }
        name = f"{self.recipe.section}-{run_key(values, _code())}"
        return CheckpointFolder(self.checkpoints / name, self.recipe.keep_checkpoints, self.infrastructure.mirror)


def _code() -> str:
    """A digest of what computes: our code, torch's version, and the kind of device, whose kernels round differently."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    version = torch.__version__.partition("+")[0]  # what follows the sign names a build, which the kind covers
    return hashlib.sha256("\n".join([provenance.digest(_TRAINING), version, kind]).encode()).hexdigest()


def make_plan(
    recipe: Recipe,
    model: ModelConfig,
    inputs: TrainingInputs,
    checkpoints: Path,
    *,
    infrastructure: Infrastructure = THIS_MACHINE,
    monitoring: Monitoring = UNWATCHED,
    accept_code_change: str | None = None,
) -> TrainingPlan:
    """A plan over the shards of `inputs` and over the recipe's `extra_shards`.

    Raises:
        DataError: shards or tokenizer are missing.
        ConfigError: the shards' images are smaller than the model requires, or extra shards have another digest than
            the recipe says; or those of its teacher do not fit, see `find_teacher`.
    """
    main, extra = read_outline(inputs.shards), [read_outline(more.path) for more in recipe.extra_shards]
    needed_px = max(size.resize_px for size in sizes(recipe, model))
    for outline in (main, *extra):
        if outline.manifest.image_px < needed_px:
            own = needed_px == model.resize_px
            raise _too_small(recipe, outline, needed_px, inputs.initial, of_phases=not own)
    for outline, expected in zip(extra, recipe.extra_shards, strict=True):
        if outline.manifest.digest != expected.digest:
            raise ConfigError(
                f"{outline.path} has the digest {outline.manifest.digest}, {recipe.section}.extra_shards says "
                f"{expected.digest}; write the one that you mean"
            )
    teacher = find_teacher(recipe, (main, *extra))
    recipe = with_temperature(recipe, teacher)
    tars = infrastructure.tars
    data = TrainingData(
        train=main.split("train", tars),
        val=main.split("val", tars),
        extra=tuple(outline.split("train", tars) for outline in extra),
        num_training_pairs=main.manifest.splits["train"].num_pairs,
        digest=main.manifest.digest,
        teacher=teacher,
    )
    return TrainingPlan(recipe, model, inputs, data, checkpoints, infrastructure, monitoring, accept_code_change)


def _too_small(recipe: Recipe, outline: Outline, need_px: int, initial: Path | None, *, of_phases: bool) -> ConfigError:
    """Says which value is the user's: a model that training starts from keeps its picture size by default."""
    shards, have_px = outline.path.parent, outline.manifest.image_px
    raise_it = f"set shard.image_px to {need_px} or more in params.yaml and make the shards again"
    own = "resize_px" if recipe.resize_px else "image_px" if recipe.image_px else None
    if of_phases:
        why = f"{recipe.section}.phases need {need_px}: lower their image_px, or {raise_it}"
    elif own is not None:
        why = f"{recipe.section}.{own} {getattr(recipe, own)} needs {need_px}: lower it, or {raise_it}"
    elif initial is None:
        why = f"model.resize_px is {need_px}: lower it, or {raise_it}"
    else:
        why = f"the model in {initial} needs {need_px}: {raise_it}"
    remake = "`align shard`" if initial is None else "`dvc repro`, or `align shard` and `align validate_shards`"
    return ConfigError(f"{shards} holds images of {have_px} px, {why} ({remake})")


def find_teacher(recipe: Recipe, outlines: Sequence[Outline]) -> tuple[StoredEmbeds, ...]:
    """The teacher's embeddings of the training split of each folder of shards, in the same order.

    Shards and embeddings belong together by the digest of the shards, which covers every byte and the order of the
    samples: so no sample of a run lacks its embeddings.

    Args:
        recipe: without `teacher` the result is empty.
        outlines: the main shards, then the extra ones.

    Raises:
        ConfigError: a folder has another digest than the recipe says, is of another split or of shards that are not
            trained on, shards have no embeddings, or they are by different models.
        DataError, CorruptError: as `align.formats.stored_embeds.read_embeds`.
    """
    if recipe.teacher is None:
        return ()
    name = f"{recipe.section}.teacher"
    of_shards: dict[str, StoredEmbeds] = {}
    trained_on = {outline.manifest.digest for outline in outlines}
    for given in recipe.teacher.embeds:
        embeds = read_embeds(given.path)
        manifest = embeds.manifest
        if manifest.digest != given.digest:
            raise ConfigError(
                f"{given.path} has the digest {manifest.digest}, {name}.embeds says {given.digest}; write the one that "
                "you mean"
            )
        if manifest.split != "train":
            raise ConfigError(f"{name}: {given.path} is of split {manifest.split}; training needs train")
        if manifest.shards_digest not in trained_on:
            raise ConfigError(
                f"{name}: {given.path} is of shards {manifest.shards_digest[:12]}, this run trains on "
                f"{', '.join(digest[:12] for digest in sorted(trained_on))}; run `align embed` over these, or remove it"
            )
        of_shards[manifest.shards_digest] = embeds
    for outline in outlines:
        if outline.manifest.digest not in of_shards:
            raise ConfigError(
                f"{name}.embeds has none of {outline.path.parent}: run `align embed {outline.path.parent} --split "
                "train --out FOLDER` with the teacher's --model, and add FOLDER with the digest that it names"
            )
    models = {embeds.manifest.model_digest for embeds in of_shards.values()}
    if len(models) > 1:
        raise ConfigError(f"{name}.embeds are by {len(models)} models; one batch has one teacher")
    return tuple(of_shards[outline.manifest.digest] for outline in outlines)


def with_temperature(recipe: R, teacher: Sequence[StoredEmbeds]) -> R:
    """The recipe with the teacher's own temperature where it names none."""
    if recipe.teacher is None or recipe.teacher.temperature is not None:
        return recipe
    own = recipe.teacher.model_copy(update={"temperature": teacher[0].manifest.temperature})
    return recipe.model_copy(update={"teacher": own})
