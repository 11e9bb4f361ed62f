"""Section `index`: what is measured on the finished index."""

from __future__ import annotations

from typing import ClassVar

from align.config.params import Section
from align.config.paths import PathField


class IndexConfig(Section):
    """All images of the shards are indexed. `queries` is a file of labelled queries to measure search with, or null."""

    section: ClassVar[str] = "index"

    queries: PathField | None
