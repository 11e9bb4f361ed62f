"""Sections `index` (how the index is stored, and what is measured on it) and `search` (how a query is formed)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section
from align.config.paths import PathField


class SearchConfig(Section):
    """The weight of the text in an image + text or image - text query, and the number of results without `-k`."""

    section: ClassVar[str] = "search"

    text_weight: Annotated[float, Field(gt=0)]
    num_results: Annotated[int, Field(ge=1)]


class IndexConfig(Section):
    """All images of the shards are indexed.

    Attributes:
        queries: a file of labelled queries to measure search with, or None.
        exact_below: with fewer images, search compares a query with all of them; with more, it is approximate.
        thumbnail_px: longest side of the thumbnails in the index; 0: it has none.
    """

    section: ClassVar[str] = "index"

    queries: PathField | None
    exact_below: Annotated[int, Field(ge=1)]
    thumbnail_px: Annotated[int, Field(ge=0, le=512)]
