"""Section `engine`: parameters of the SQL engine. Never DVC params: they change where and how fast, not what."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from align.config.params import Section
from align.config.paths import PathField


class EngineConfig(Section):
    """Limits of the engine that evaluates rules over whole tables."""

    section: ClassVar[str] = "engine"
    changes_bytes: ClassVar[bool] = False

    #: DuckDB on this machine, or Spark (`pip install align-mlops[spark]`, and Java) for tables that need more.
    runner: Literal["duckdb", "spark"]
    #: In Spark's notation: local[*], spark://HOST:PORT, sc://HOST:PORT (Connect), yarn, k8s://...
    spark_master: Annotated[str, Field(min_length=1)]
    #: Processes that work on shards in parallel; None means one per core.
    num_workers: PositiveInt | None
    #: In DuckDB's notation, such as 1GB. Beyond it the engine spills to `temp_directory`.
    memory_limit: str = Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(MB|GB|MiB|GiB)$")
    #: Threads for SQL, for picture decoding and for the NSFW classifier; None means one per core.
    num_threads: PositiveInt | None
    #: Folder for scratch files; None means the system's.
    temp_directory: PathField | None

    @property
    def memory_bytes(self) -> int:
        """`memory_limit` in bytes."""
        number, unit = self.memory_limit.rstrip("MGiB"), self.memory_limit.lstrip("0123456789.")
        return round(float(number) * {"MB": 10**6, "MiB": 1 << 20, "GB": 10**9, "GiB": 1 << 30}[unit])
