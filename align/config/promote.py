"""Section `promote`: when a candidate becomes the champion."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class PromoteConfig(Section):
    """What is compared, and how much better it must be."""

    section: ClassVar[str] = "promote"

    metrics: Annotated[list[str], Field(min_length=1)]
    min_gain: float
    min_times_chance: Annotated[float, Field(ge=0)]
