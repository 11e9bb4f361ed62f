"""Parameters of the SQL engine. Shared, and never DVC params: they change where and how fast, not what."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt

from align.config.params import Section
from align.config.paths import PathField


class EngineConfig(Section):
    """Bounds of the engine that evaluates rules over whole tables."""

    section: ClassVar[str] = "engine"

    #: DuckDB's notation, such as 1GB. Beyond it the engine spills to `temp_directory`.
    memory_limit: str = Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(MB|GB|MiB|GiB)$")
    #: Threads of SQL, of picture decoding and of the NSFW classifier; None takes one per core.
    num_threads: PositiveInt | None
    #: Where scratch files go; None takes the system's.
    temp_directory: PathField | None
