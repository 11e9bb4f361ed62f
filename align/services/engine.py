"""SQL over tables larger than memory: DuckDB, held to a memory limit, spilling to a scratch folder that goes away.

Callers speak in views over parquet files, tables and queries in ANSI SQL, so another engine can stand behind the same
four methods.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from align.config.engine import EngineConfig
from align.errors import DataError

_ROW_GROUP_SIZE = 100_000


class Engine:
    """One connection. Names of views and tables are the caller's; they end with it.

    Attributes:
        scratch: a folder for the caller's own intermediate files; removed at the end.
        num_threads: how many threads the caller may use besides.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, scratch: Path, num_threads: int) -> None:
        self.scratch = scratch
        self.num_threads = num_threads
        self._connection = connection

    def view(self, name: str, files: Path) -> None:
        """Makes parquet files (a path, or a folder and a pattern such as `texts/*.parquet`) readable as a table."""
        self._execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({_quoted(files)})")

    def table(self, name: str, query: str) -> None:
        """Materialises a query, on disk where it does not fit in memory."""
        self._execute(f"CREATE TABLE {name} AS {query}")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A query's result in memory: for what is known to be small."""
        return self._execute(query).fetchall()

    def write(self, query: str, path: Path) -> None:
        """Writes a query's result as one parquet file; with an ORDER BY, equal results are equal bytes."""
        options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP_SIZE}"
        self._execute(f"COPY ({query}) TO {_quoted(path)} ({options})")

    def _execute(self, statement: str) -> duckdb.DuckDBPyConnection:
        try:
            return self._connection.execute(statement)
        except duckdb.OutOfMemoryException as error:
            first_line = str(error).splitlines()[0]
            raise DataError(f"engine.memory_limit is too small for this table ({first_line}); raise it") from None


@contextmanager
def open_engine(config: EngineConfig) -> Iterator[Engine]:
    """An engine with an empty database of its own."""
    if config.temp_directory is not None:
        config.temp_directory.mkdir(parents=True, exist_ok=True)
    num_threads = config.num_threads or os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="align-", dir=config.temp_directory) as folder:
        scratch = Path(folder)
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": config.memory_limit,
            "threads": num_threads,
            "temp_directory": str(scratch / "spill"),
        }
        connection = duckdb.connect(str(scratch / "engine.duckdb"), config=settings)
        connection.execute("SET enable_progress_bar = false")  # it draws on stdout, also where that is a file
        try:
            yield Engine(connection, scratch, num_threads)
        finally:
            connection.close()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
