"""Where things lie. Never DVC params: a path changes where, not what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section

#: YAML has no path type, so this one type is read leniently from a string.
PathField = Annotated[Path, Field(strict=False)]


class PathsConfig(Section):
    """Paths, relative to the working directory."""

    section: ClassVar[str] = "paths"
    changes_bytes: ClassVar[bool] = False

    #: Also s3://...; see `ingest.source` for what it may be.
    archive: Annotated[str, Field(min_length=1)]
    evaluation: PathField
    raw: PathField
    filtered: PathField
    shards: PathField
    tokenizer: PathField
    pretrained: PathField
    finetuned: PathField
    packaged: PathField
    index: PathField
    reports: PathField
    policy: PathField
    checkpoints: PathField
    runtime: PathField
