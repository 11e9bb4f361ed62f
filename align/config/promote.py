"""Section `promote`: when a candidate becomes the champion."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class PromoteConfig(Section):
    """Which metrics are compared, and by how much the candidate must be better. No stage reads this."""

    section: ClassVar[str] = "promote"
    changes_bytes: ClassVar[bool] = False

    metrics: Annotated[list[str], Field(min_length=1)]
    min_gain: float
    min_times_chance: Annotated[float, Field(ge=0)]
    #: A person must approve each promotion whose gates passed.
    approval: bool
    #: Hours that the flow `approve` waits for an answer; a year at most.
    approval_timeout_h: Annotated[float, Field(gt=0, le=8760)]
