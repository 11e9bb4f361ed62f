"""Thresholds for warnings while training; none stops a run. Never DVC params."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from align.config.params import Section, in_order

Band = Annotated[tuple[float, float], Field(strict=False), AfterValidator(in_order)]


class HealthConfig(Section):
    """Bounds for the signs of a training run's health; a bound of None is not checked."""

    section: ClassVar[str] = "health"
    changes_bytes: ClassVar[bool] = False

    #: Lowest and highest temperature.
    temperature: Band | None
    #: Relative change of the temperature over `stuck_steps` below which it counts as stuck.
    temperature_moves: float | None = Field(ge=0)
    stuck_steps: int = Field(ge=1)
    #: Norm of the gradients, as a multiple of its median over the last hundred steps.
    gradient_norm_jump: float | None = Field(gt=1)
    #: Effective rank of the validation images' embeddings, as a share of their width.
    min_effective_rank_share: float | None = Field(ge=0, le=1)
    #: Mean of 1 - cosine between an image's embeddings by batch statistics and by running ones.
    max_batch_norm_gap: float | None = Field(ge=0)
    #: Share of the time that steps wait for the loader.
    max_loader_wait_share: float | None = Field(ge=0, le=1)
    #: Peak of one device in the precision used; training reports its share of it (MFU). None: not reported.
    device_tflops: float | None = Field(gt=0)
    #: Price of one device, for the cost of a run; None: not reported.
    price_per_hour: float | None = Field(ge=0)
