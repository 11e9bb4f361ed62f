"""Section `store`: where bytes are stored outside this machine. Never DVC params: they change where, not what."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from align.config.params import Section
from align.config.paths import PathField


class StoreConfig(Section):
    """An object store for tars, and how to reach it. Endpoint and credentials are AWS_* variables."""

    section: ClassVar[str] = "store"
    changes_bytes: ClassVar[bool] = False

    #: s3://bucket/prefix, or a folder: tars of data/raw and data/shards are stored there under their sha256, and the
    #: folders keep tables and manifests only. None keeps everything in the folders, and so in DVC's cache.
    objects: Annotated[str, Field(min_length=1)] | None
    #: s3://bucket/prefix for copies of training checkpoints; None keeps them on this machine only.
    checkpoints: Annotated[str, Field(pattern=r"^s3://[^/]+")] | None
    #: s3://bucket/prefix: ranges (`--shards`) on machines that share no disk share their work there; None: they share a
    #: folder.
    work: Annotated[str, Field(pattern=r"^s3://[^/]+")] | None
    #: Folder for checked copies of what was read from the store.
    cache: PathField
    #: Folder for measurements of evaluation images by filter and evaluate, for later runs; None: measured in each run.
    features: PathField | None
    #: Size of a part in multipart uploads.
    part_size_mb: Annotated[int, Field(ge=5)]
    #: Parts at the same time, per process.
    num_connections: PositiveInt
    #: Attempts after the first.
    num_retries: NonNegativeInt
    #: An attempt without an answer for this long has failed.
    timeout_s: PositiveFloat

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.work is not None and self.objects is not None and not self.objects.startswith("s3://"):
            raise ValueError(
                f"store.objects: {self.objects} is a folder, which other machines of store.work do not have"
            )
        return self
