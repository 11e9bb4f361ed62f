"""Section `store`: where bytes beyond this machine lie. Never DVC params: where, not what."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from align.config.params import Section
from align.config.paths import PathField


class StoreConfig(Section):
    """An object store for tars, and how it is spoken to. Endpoint and credentials are AWS_* variables."""

    section: ClassVar[str] = "store"
    changes_bytes: ClassVar[bool] = False

    #: s3://bucket/prefix, or a folder: tars of data/raw and data/shards go there under their sha256, and the folders
    #: keep tables and manifests only. None keeps everything in the folders, which DVC's cache then holds.
    objects: Annotated[str, Field(min_length=1)] | None
    #: s3://bucket/prefix for copies of training checkpoints; None keeps them on this machine only.
    checkpoints: Annotated[str, Field(pattern=r"^s3://[^/]+")] | None
    #: Verified copies of what was read from there.
    cache: PathField
    #: Of multipart uploads.
    part_size_mb: Annotated[int, Field(ge=5)]
    num_connections: PositiveInt
    #: Attempts after the first one.
    num_retries: NonNegativeInt
    #: Without an answer for so long an attempt has failed.
    timeout_s: PositiveFloat
