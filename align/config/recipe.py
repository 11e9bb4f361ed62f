"""The recipe of a training run: `pretrain` and `finetune` are two sections of it, each with its own values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from align.config.given import Given
from align.config.model import Checkpointing, Locked, ModelConfig
from align.config.params import Section, Strict
from align.config.paths import PathField
from align.errors import ConfigError

#: Measures of training on the val split, for which more is better (`align.training.validation`).
_VALIDATED = re.compile(r"val/((image_to_text|text_to_image)/recall@(1|5|10)|effective_rank)")
#: The same on an evaluation set (`align.pipeline.validation`): its name, and the measure.
VALIDATED_ON = re.compile(
    r"val/([\w.-]+)/((zero_shot|knn)/accuracy|(image_to_text|text_to_image)/recall@(1|5|10)|mean_recall)"
)


def even_ranks(batch_size: int, group: int, most: int) -> int:
    """The largest number of ranks, at most `most`, whose parts of a batch are equal, and multiples of `group`."""
    return next((count for count in range(most, 1, -1) if batch_size % (count * group) == 0), 1)


class ExtraShards(Strict):
    """One more folder of shards to train on, made elsewhere. DVC does not track it, so its digest is given here."""

    path: PathField
    #: `digest` in its manifest.json.
    digest: str
    #: Relative to that of `paths.shards`, which is 1.
    weight: float = Field(gt=0)


class Recipe(Section):
    """One training run. The sections `pretrain` and `finetune` are recipes.

    Attributes:
        neutral_fields: change no result beyond rounding, so a run resumes after a change of any of them.
    """

    neutral_fields: ClassVar[frozenset[str]] = frozenset({
        # when the state is saved, which checkpoints are kept, and which of them is the result
        "checkpoint_every_steps", "keep_checkpoints", "best_metric", "export",
        # what else is measured meanwhile
        "validate_on",
        # how the work on a batch is divided, and with which kernels: sums round differently
        "num_processes", "num_threads", "micro_batch", "gradient_checkpointing", "shard_weights", "compile",
        # both settings train on the same samples, so a stopped run may resume in quarantine mode
        "on_corrupt_shard",
    })  # fmt: skip

    seed: int = Field(ge=0)
    num_steps: int = Field(ge=1)
    #: None: those of the model; its weights are convolutional, so they fit any size (see `trained`).
    image_px: int | None = Field(ge=32)
    resize_px: int | None = Field(ge=32)
    stochastic_depth: float | None = Field(ge=0, lt=1)
    batch_size: int = Field(ge=1)
    micro_batch: int | None = Field(ge=1)
    optimiser: Literal["lamb", "muon", "adamw"]
    learning_rate: float = Field(gt=0)
    text_learning_rate_scale: float = Field(gt=0)
    vector_learning_rate_scale: float = Field(gt=0)
    schedule: Literal["linear", "cosine"]
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    eps: float = Field(gt=0)
    #: None: 1 / sqrt(width of the text tower).
    text_init_std: float | None = Field(gt=0)
    position_init_scale: float = Field(ge=0)
    #: Weights of a tower that was trained elsewhere; None: random ones. Only pre-training begins with them.
    #: A state dict of the model of timm that `model.image_tower` names: .safetensors, or written by `torch.save`.
    image_weights: Given | None
    #: A folder of a text encoder in Hugging Face's format: `config.json`, its tokenizer and the weights, of which the
    #: digest is, in `model.safetensors`.
    text_weights: Given | None
    #: The tower whose weights do not change.
    locked: Locked
    loss: Literal["align", "sigmoid", "global"]
    global_rho: float = Field(ge=0)
    global_gamma: float = Field(gt=0, le=1)
    global_eps: float = Field(gt=0)
    label_smoothing: float = Field(ge=0, lt=1)
    #: How many of the first steps train the image tower to predict words (`align.training.words`).
    words_steps: int = Field(ge=0)
    #: Words that fewer samples have are no labels.
    words_min_count: int = Field(ge=1)
    words_loss: Literal["binary", "softmax"]
    #: The part of the global batch among whose pairs a pair is told from the others (`num_groups`).
    negatives_share: float
    #: False: it stays what it is at the start (`model.temperature_init`, or that of the model to start from).
    learn_temperature: bool
    clip_norm: float | None = Field(gt=0)
    flip: bool
    #: Smallest and largest side of a random crop, relative to `image_px` (`align.model.preprocess.random_crop`).
    crop_scale: Annotated[tuple[Annotated[float, Field(ge=0.1)], Annotated[float, Field(le=2)]], Field(strict=False)]
    phrase_dropout: float = Field(ge=0, le=1)
    sentence_share: float = Field(ge=0, le=1)
    #: Of each batch, about so much are groups of samples with texts that are alike (`align.training.batches.alike`);
    #: only in pre-training. Then the size of a group, and the mean size of the clusters that groups are cut from.
    alike_share: float = Field(ge=0, le=1)
    alike_group: int = Field(ge=2)
    alike_cluster: int = Field(ge=2)
    #: An n-gram that more samples hold makes them rarer (`align.training.batches.balance`); fine-tuning ignores it.
    text_balance: float | None = Field(gt=0)
    precision: Literal["float32", "bfloat16", "float16"]
    gradient_checkpointing: Checkpointing
    shard_weights: bool
    #: None: on a GPU.
    compile: bool | None
    log_every_steps: int = Field(ge=1)
    validate_every_steps: int = Field(ge=1)
    #: Names of evaluation sets, of `paths.evaluation`.
    validate_on: Annotated[tuple[str, ...], Field(strict=False)]
    checkpoint_every_steps: int = Field(ge=1)
    keep_checkpoints: int = Field(ge=1)
    best_metric: str | None
    #: Which checkpoint is the trained model.
    export: Literal["last", "best"]
    num_processes: int | None = Field(ge=1)
    num_threads: int | None = Field(ge=1)
    #: Of the training split, in the order of its shards; None: all. So a smaller number is a part of a larger one.
    max_pairs: int | None = Field(ge=1)
    extra_shards: Annotated[tuple[ExtraShards, ...], Field(strict=False)]
    on_corrupt_shard: Literal["stop", "quarantine"]

    @property
    def num_groups(self) -> int:
        """Into how many groups `negatives_share` divides the pairs of a global batch."""
        return round(1 / self.negatives_share)

    @property
    def num_words_steps(self) -> int:
        """Of `words_steps` those of this run: fine-tuning has none."""
        return self.words_steps if self.section == "pretrain" else 0

    def deciding_values(self) -> dict[str, Any]:
        """The values that decide the result. What was made elsewhere counts by its digest, not by its path."""
        of_all = {"__all__": {"path"}}
        exclude: dict[str, Any] = {"extra_shards": of_all}
        exclude |= {"image_weights": {"path"}, "text_weights": {"path"}}
        exclude |= dict.fromkeys(self.neutral_fields, True)
        return self.model_dump(mode="json", exclude=exclude)

    def trained(self, model: ModelConfig) -> ModelConfig:
        """A model's configuration while this recipe trains it, and afterwards: its picture size and stochastic depth.

        If only `image_px` is given, `resize_px` keeps its proportion to it.

        Raises:
            ConfigError: `image_px` is larger than `resize_px`.
        """
        image_px = self.image_px or model.image_px
        resize_px = self.resize_px or round(model.resize_px * image_px / model.image_px)
        if image_px > resize_px:
            raise ConfigError(
                f"{self.section}.image_px {image_px} is larger than resize_px {resize_px}, which it is cropped from"
            )
        depth = model.stochastic_depth if self.stochastic_depth is None else self.stochastic_depth
        return model.model_copy(update={"image_px": image_px, "resize_px": resize_px, "stochastic_depth": depth})

    def against(self, model: ModelConfig, num_nodes: int, num_processes: int | None) -> str | None:
        """One line about what in the recipe contradicts the model or the number of ranks, or None.

        Args:
            model: that is trained.
            num_nodes: machines.
            num_processes: ranks on each; None: not known yet.
        """
        name, group = self.section, model.batch_norm_group
        if self.batch_size % ((num_processes or 1) * num_nodes * group):
            return (
                f"{name}.batch_size {self.batch_size} must be a multiple of "
                + (f"cluster.num_nodes {num_nodes} x " if num_nodes > 1 else "")
                + (f"num_processes {num_processes} x " if num_processes else "")
                + f"model.batch_norm_group {group}"
            )
        if self.micro_batch and self.micro_batch % group:
            return f"{name}.micro_batch {self.micro_batch} must be a multiple of model.batch_norm_group {group}"
        if self.optimiser == "muon" and self.shard_weights:
            return f"{name}.optimiser: muon needs whole matrices, so {name}.shard_weights false; or use lamb"
        if self.precision == "float16" and self.shard_weights:
            return f"{name}.precision: float16 needs whole gradients, so {name}.shard_weights false; or use bfloat16"
        if (self.loss == "sigmoid") != (model.logit_bias_init is not None):
            bias = "null" if model.logit_bias_init is None else model.logit_bias_init
            return (
                f"{name}.loss {self.loss} and model.logit_bias_init {bias} do not go together: the "
                "sigmoid loss needs a bias, such as -10, and ALIGN's has none (null)"
            )
        if self.negatives_share < 1 and self.loss != "align":
            return f"{name}.negatives_share {self.negatives_share} is of loss align; the {self.loss} loss needs 1"
        if self.loss == "global" and (self.batch_size == 1 or self.extra_shards):
            return f"{name}.loss global needs a batch_size of at least 2, and no {name}.extra_shards"
        share = self.batch_size // ((num_processes or 1) * num_nodes)
        if share % self.num_groups:
            return (
                f"{name}.negatives_share {self.negatives_share} does not divide a rank's {share} pairs; use fewer ranks"
            )
        if self.num_words_steps and (self.shard_weights or self.precision == "float16"):
            return f"{name}.words_steps needs {name}.shard_weights false and another {name}.precision than float16"
        if self.export == "best" and self.best_metric is None:
            return f"{name}.export: best needs {name}.best_metric, which says what is better"
        return None

    @field_validator("negatives_share")
    @classmethod
    def _divides(cls, share: float) -> float:
        if share not in (1, 0.5, 0.25):
            raise ValueError("expected 1, 0.5 or 0.25: the paper's (6.1)")
        return share

    @field_validator("best_metric")
    @classmethod
    def _is_measured(cls, metric: str | None) -> str | None:
        if metric is not None and not (_VALIDATED.fullmatch(metric) or VALIDATED_ON.fullmatch(metric)):
            raise ValueError("training measures no such value; expected such as val/text_to_image/recall@10, or null")
        return metric

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale {[*self.crop_scale]}: the smallest comes first")
        if self.num_steps and self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than num_steps {self.num_steps}")
        of_set = None if self.best_metric is None else VALIDATED_ON.fullmatch(self.best_metric)
        if of_set and of_set[1] not in self.validate_on:
            raise ValueError(f"best_metric {self.best_metric}: {of_set[1]} is not one of validate_on")
        if self.num_processes and self.batch_size % self.num_processes:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_processes {self.num_processes}")
        return self


class PretrainConfig(Recipe):
    """Pre-training from scratch, or from towers that were trained elsewhere."""

    section: ClassVar[str] = "pretrain"

    def against(self, model: ModelConfig, num_nodes: int, num_processes: int | None) -> str | None:
        """As `Recipe.against`; given weights also have to be those of the model's tower."""
        if self.image_weights is not None and "timm" not in model.libraries:
            return f"{self.section}.image_weights need model.image_tower: timm:NAME, whose weights they are"
        if self.text_weights is not None and "transformers" not in model.libraries:
            return f"{self.section}.text_weights need a model.text_tower of transformers: {{config: the folder's}}"
        if self.alike_share and self.extra_shards:
            return f"{self.section}.alike_share {self.alike_share} is of one source: extra_shards [], or alike_share 0"
        return super().against(model, num_nodes, num_processes)

    @model_validator(mode="after")
    def _locks_what_was_trained(self) -> Self:
        given = {"image": self.image_weights, "text": self.text_weights, "none": True}
        if not given[self.locked]:
            raise ValueError(
                f"locked: {self.locked} needs {self.locked}_weights: a tower of random weights would learn nothing; "
                "name its weights, or set locked to none"
            )
        if self.words_steps and self.locked == "image":
            raise ValueError("words_steps trains the image tower, so locked: image needs 0")
        if self.words_steps and self.words_steps + self.warmup_steps >= self.num_steps:
            both = f"words_steps {self.words_steps} and another {self.warmup_steps} warmup_steps"
            raise ValueError(f"{both} must be less than num_steps {self.num_steps}")
        return self


class FinetuneConfig(Recipe):
    """Retrieval fine-tuning of the pre-trained model, or of another one."""

    section: ClassVar[str] = "finetune"
    #: The model in the folder decides the result, by the digest of its weights, and not the folder's path. Towers that
    #: were given to pre-training are part of it.
    neutral_fields: ClassVar[frozenset[str]] = Recipe.neutral_fields | {
        "start", "image_weights", "text_weights", "words_steps", "words_min_count", "words_loss",
    }  # fmt: skip

    #: `from` is a keyword of Python.
    start: Annotated[Path, Field(alias="from", strict=False)]
    #: 0: the model is taken as it is.
    num_steps: int = Field(ge=0)
