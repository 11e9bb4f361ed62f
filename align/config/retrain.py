"""Section `retrain`: when the pipeline runs again by itself, and when a champion is old."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class RetrainConfig(Section):
    """The limits of a scheduled look at the source. No stage reads this."""

    section: ClassVar[str] = "retrain"
    changes_bytes: ClassVar[bool] = False

    #: Share of the source that must have changed since the champion's data.
    min_change: Annotated[float, Field(ge=0, le=1)]
    #: Days after its promotion at which a champion counts as old; None: never.
    champion_days: Annotated[float, Field(gt=0)] | None
