"""Parameters of `align ingest`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from align.config.params import Section


class IngestConfig(Section):
    """From a web archive to data/raw."""

    section: ClassVar[str] = "ingest"

    #: Pages taken from the archive, spread evenly over it; None takes all.
    max_pages: PositiveInt | None
    #: Pairs per shard. A key has four digits for the place in its shard.
    shard_size: int = Field(ge=1, le=10_000)
    #: Larger pictures are not decoded: width x height from the header.
    max_image_pixels: PositiveInt
    #: Take the readable part of a file that is cut off, instead of an error.
    allow_truncated: bool
