"""SQL over tables larger than memory: the same ANSI SQL on two engines, DuckDB here and Spark in `spark_engine`.

Callers use views over parquet files, tables, and queries that both engines read alike; only `Engine.unnest` differs.
Queries avoid what the engines do differently: functions on strings (case folding, regular expressions, collation) run
in Python, once, while texts are measured; divisions are written as products, numbers with a fraction as
`CAST(0.1 AS DOUBLE)`, and NULLs are never sorted.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from align.config.infrastructure import EngineConfig
from align.durable.files import replaced
from align.errors import DataError
from align.interfaces.sql import ROWS_AT_ONCE, Engine

#: Memory per row of a join's hash table of numbers, and for the rows joined to it. Measured with 50 million pairs, 25
#: million numbers and 700 MB: two parts took 28 s, three 31 s, and one, which spilled, 46 s.
_JOIN_ROW_BYTES = 50
#: With more parts, reading the rows again costs more than spilling: 30 million n-grams took 11.8 CPU seconds in six
#: parts, and 14.9 in the 20 that 75 MB ask for; 9.6, and 11.0 in the 13 that 120 MB ask for.
_MAX_PARTS = 6
#: DuckDB's message names this setting if nothing more fits on the disk. Its default is 90 % of what is free.
_SPILL_LIMIT = "max_temp_directory_size"


@contextmanager
def open_engine(config: EngineConfig, folder: Path | None = None) -> Iterator[Engine]:
    """Opens the engine that `engine.runner` names, with an empty database of its own.

    Args:
        config: the runner and its bounds.
        folder: for its scratch files if `engine.temp_directory` is not set; None: the system's. A cluster needs one
            that all its machines see.

    Raises:
        ServiceError: Spark, Java or the cluster is unavailable.
    """
    parent = config.temp_directory or folder
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="align-", dir=parent) as name:
        scratch = Path(name).resolve()
        if config.runner == "spark":
            from align.services.spark_engine import SparkEngine, open_session

            with open_session(config, scratch) as session:
                yield SparkEngine(session, scratch, config.num_threads or os.cpu_count() or 1)
        else:
            with _open_duckdb(config, scratch) as engine:
                yield engine


class DuckDbEngine:
    """See `Engine`. Equal results of an ORDER BY give equal bytes."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, scratch: Path, num_threads: int, memory_bytes: int
    ) -> None:
        self.scratch = scratch
        self.num_threads = num_threads
        self._memory_bytes = memory_bytes
        self._connection = connection

    def view(self, name: str, files: Path) -> None:
        """See `Engine`."""
        self._execute(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM read_parquet({_quoted(files)})")

    def table(self, name: str, query: str) -> None:
        """See `Engine`."""
        self._execute("SET preserve_insertion_order = false")  # keeping the order needs buffers
        self._execute(f"CREATE OR REPLACE TEMP TABLE {name} AS {query}")  # others are compressed, without any use
        self._execute("SET preserve_insertion_order = true")

    def drop(self, name: str) -> None:
        """See `Engine`."""
        self._execute(f"DROP TABLE {name}")

    def num_parts(self, num_rows: int) -> int:
        """See `Engine`."""
        return min(_MAX_PARTS, -(-num_rows * _JOIN_ROW_BYTES // self._memory_bytes) or 1)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """See `Engine`."""
        return self._execute(query).fetchall()

    def write(self, query: str, path: Path, compression: str = "zstd", group_rows: int = ROWS_AT_ONCE) -> None:
        """See `Engine`."""
        # zstd's first level: the next two take a fifth more time, and the file is no smaller
        codec = {"none": "uncompressed", "zstd": "zstd, COMPRESSION_LEVEL 1"}.get(compression, compression)
        options = f"FORMAT parquet, COMPRESSION {codec}, ROW_GROUP_SIZE {group_rows}"
        with replaced(path, on_disk=False) as beside:
            self._execute(f"COPY ({query}) TO {_quoted(beside)} ({options})")

    def unnest(self, array: str) -> str:
        """See `Engine`."""
        return f"unnest({array})"

    def _execute(self, statement: str) -> duckdb.DuckDBPyConnection:
        try:
            return self._connection.execute(statement)
        except duckdb.OutOfMemoryException as error:
            first_line = str(error).splitlines()[0]
            if _SPILL_LIMIT in str(error):  # DuckDB's word for a full disk: the limit is what was free at the start
                raise self._disk_is_full(first_line) from None
            raise DataError(f"engine.memory_limit is too small for this table ({first_line}); raise it") from None
        except duckdb.IOException as error:
            refused = _of_the_disk(error)
            if refused is None:
                raise
            if refused.errno == errno.ENOSPC and Path(refused.filename).is_relative_to(self.scratch):
                raise self._disk_is_full(refused.strerror) from None
            raise refused from None

    def _disk_is_full(self, why: str | None) -> DataError:
        total, _, free = shutil.disk_usage(self.scratch)
        return DataError(
            f"the disk of engine.temp_directory is full: {self.scratch.parent}: {free >> 20:,} of {total >> 20:,} "
            f"MiB free ({why}); what exceeds engine.memory_limit is kept there: free space, or name a larger disk"
        )


@contextmanager
def _open_duckdb(config: EngineConfig, scratch: Path) -> Iterator[DuckDbEngine]:
    num_threads = config.num_threads or os.cpu_count() or 1
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": config.memory_limit,
        "threads": num_threads,
        "temp_directory": str(scratch / "spill"),
    }
    connection = duckdb.connect(config=settings)
    connection.execute("SET enable_progress_bar = false")  # it draws on stdout, even if that is a file
    try:
        yield DuckDbEngine(connection, scratch, num_threads, config.memory_bytes)
    finally:
        connection.close()
        shutil.rmtree(scratch / "spill", ignore_errors=True)


def _of_the_disk(error: duckdb.IOException) -> OSError | None:
    """The system's error that DuckDB reports as `Cannot write "PATH": REASON`, if it is one of those."""
    match = re.search(r'"(?P<path>[^"]+)": (?P<reason>[^"\n]+)', str(error))
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
        if match and match["reason"].startswith(os.strerror(number)):
            return OSError(number, os.strerror(number), match["path"])
    return None


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
