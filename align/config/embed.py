"""Section `embed`: bounds the memory of `align embed` and the work that a killed run loses."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class EmbedConfig(Section):
    """Rows per part file. One part is in memory at a time, and a killed run loses at most one. No stage reads this."""

    section: ClassVar[str] = "embed"
    changes_bytes: ClassVar[bool] = False

    rows_per_part: Annotated[int, Field(ge=1)]
