"""Section `shard`: how kept pairs become training shards."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class ShardConfig(Section):
    """Sizes, and the split by cluster. `val` and `test` are fractions of the clusters; all others are train."""

    section: ClassVar[str] = "shard"

    image_px: Annotated[int, Field(ge=8, le=2048)]
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]
    images_per_shard: Annotated[int, Field(ge=1)]
    seed: int
    val_fraction: Annotated[float, Field(ge=0, lt=0.5)]
    test_fraction: Annotated[float, Field(ge=0, lt=0.5)]
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)]
    max_cluster_share: Annotated[float, Field(gt=0, le=1)]
