"""The recipe of a training run: `pretrain` and `finetune` are two sections of it, each with its own values."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from align.config.params import Section
from align.config.paths import PathField


class ExtraShards(BaseModel):
    """One more folder of shards to train on, made elsewhere. DVC does not track it, so its digest is given here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

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
        # when the state is saved, and which checkpoints are kept
        "checkpoint_every_steps", "keep_checkpoints", "best_metric",
        # how the work on a batch is divided, and with which kernels: sums round differently
        "num_processes", "num_threads", "micro_batch", "gradient_checkpointing", "shard_weights", "compile",
        "cudnn_benchmark",
        # how fast samples arrive
        "num_loader_threads", "store_patience_s",
        # both settings train on the same samples, so a stopped run may resume in quarantine mode
        "on_corrupt_shard",
    })  # fmt: skip

    seed: int = Field(ge=0)
    num_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    micro_batch: int | None = Field(ge=1)
    learning_rate: float = Field(gt=0)
    text_learning_rate_scale: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    beta2: float = Field(ge=0, lt=1)
    loss: Literal["align", "sigmoid"]
    label_smoothing: float = Field(ge=0, lt=1)
    clip_norm: float | None = Field(gt=0)
    ema_decay: float | None = Field(gt=0, lt=1)
    flip: bool
    phrase_dropout: float = Field(ge=0, le=1)
    precision: Literal["float32", "bfloat16", "float16"]
    gradient_checkpointing: bool
    shard_weights: bool
    compile: bool
    tf32: bool
    cudnn_benchmark: bool
    log_every_steps: int = Field(ge=1)
    validate_every_steps: int = Field(ge=1)
    checkpoint_every_steps: int = Field(ge=1)
    keep_checkpoints: int = Field(ge=1)
    best_metric: str | None
    num_processes: int | None = Field(ge=1)
    num_threads: int | None = Field(ge=1)
    shuffle_block: int = Field(ge=1)
    extra_shards: Annotated[tuple[ExtraShards, ...], Field(strict=False)]
    on_corrupt_shard: Literal["stop", "quarantine"]
    num_loader_threads: int | None = Field(ge=1)
    store_patience_s: float = Field(ge=0)

    def deciding_values(self) -> dict[str, Any]:
        """The values that decide the result. Extra shards count by digest and weight, wherever they are stored."""
        exclude: dict[str, Any] = dict.fromkeys(self.neutral_fields, True)
        return self.model_dump(mode="json", exclude=exclude | {"extra_shards": {"__all__": {"path"}}})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_steps and self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than num_steps {self.num_steps}")
        if self.num_processes and self.batch_size % self.num_processes:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of num_processes {self.num_processes}")
        return self
