"""Section `search`: how a query is formed and how many results are shown."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class SearchConfig(Section):
    """The weight of the text in an image + text or image - text query, and the number of results without `-k`."""

    section: ClassVar[str] = "search"

    text_weight: Annotated[float, Field(gt=0)]
    num_results: Annotated[int, Field(ge=1)]
