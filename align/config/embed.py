"""Section `embed`: sizes that bound the memory of `align embed` and the work that a kill can lose."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class EmbedConfig(Section):
    """Rows in memory at once, which is also the size of a part file: a killed run loses at most one part."""

    section: ClassVar[str] = "embed"

    rows_per_part: Annotated[int, Field(ge=1)]
