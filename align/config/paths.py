"""Section `paths`: where inputs and outputs are stored. Never DVC params: a path changes where, not what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section

#: YAML has no path type, so this type alone is read from a string; all others are strict.
PathField = Annotated[Path, Field(strict=False)]


class PathsConfig(Section):
    """Paths, relative to the working directory."""

    section: ClassVar[str] = "paths"
    changes_bytes: ClassVar[bool] = False

    #: A path or s3://...; `ingest.source` says what kind of archive it is.
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
