"""What pre-training and fine-tuning share: one recipe, two sections of params.yaml with their own values."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from align.config.params import Section
from align.config.paths import PathField


class ExtraShards(BaseModel):
    """One more folder of shards to train on, made elsewhere; DVC does not know it, so its digest stands here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: PathField
    #: `digest` of its manifest.json.
    digest: str
    #: `paths.shards` has 1.
    weight: float = Field(gt=0)


class Recipe(Section):
    """One training run. The sections `pretrain` and `finetune` are recipes."""

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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than num_steps {self.num_steps}")
        if self.num_processes and self.batch_size % self.num_processes:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of num_processes {self.num_processes}")
        return self
