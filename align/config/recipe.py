"""What pre-training and fine-tuning share: one recipe, two sections of params.yaml with their own values."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from align.config.params import Section


class Recipe(Section):
    """One training run. The sections `pretrain` and `finetune` are recipes."""

    seed: int = Field(ge=0)
    num_steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    text_learning_rate_scale: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    beta2: float = Field(ge=0, lt=1)
    label_smoothing: float = Field(ge=0, lt=1)
    flip: bool
    phrase_dropout: float = Field(ge=0, le=1)
    bfloat16: bool
    log_every_steps: int = Field(ge=1)
    validate_every_steps: int = Field(ge=1)
    checkpoint_every_steps: int = Field(ge=1)
    keep_checkpoints: int = Field(ge=1)
    num_processes: int | None = Field(ge=1)
    num_threads: int | None = Field(ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.warmup_steps >= self.num_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than num_steps {self.num_steps}")
        if self.num_processes and self.batch_size % self.num_processes:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of num_processes {self.num_processes}")
        return self
