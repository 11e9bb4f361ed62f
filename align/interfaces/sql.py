"""The interface of an SQL engine. `align.services.engine` implements it on DuckDB, `spark_engine` on Spark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

#: Runs a query and returns its result, which must be small.
Rows = Callable[[str], list[tuple[Any, ...]]]

#: Rows per row group in parquet files that an engine writes, unless it is told another number.
ROWS_AT_ONCE = 100_000


class Engine(Protocol):
    """One session. The caller names its views and tables, which end with it.

    Attributes:
        scratch: a folder for the caller's own intermediate files; removed at the end.
        num_threads: how many threads the caller may use for its own work.
    """

    scratch: Path
    num_threads: int

    def view(self, name: str, files: Path) -> None:
        """Makes parquet files (a path, or a folder and a pattern such as `texts/*.parquet`) readable as a table."""
        ...

    def table(self, name: str, query: str) -> None:
        """Stores a query's result, on disk if it does not fit in memory. A table has no order."""
        ...

    def drop(self, name: str) -> None:
        """Removes a table and frees its memory."""
        ...

    def num_parts(self, num_rows: int) -> int:
        """In how many parts a join with this many numbers should run, so that each fits in memory; at least 1."""
        ...

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A query's result in memory, which must be small."""
        ...

    def write(self, query: str, path: Path, compression: str = "zstd", group_rows: int = ROWS_AT_ONCE) -> None:
        """Writes a query's result as one parquet file, complete or not at all; in order where it has an ORDER BY.

        Args:
            query: its result is written.
            path: the file.
            compression: by its name in parquet; `none` for files that are soon read and removed.
            group_rows: rows per row group, about; fewer where tasks read few rows each.
        """
        ...

    def unnest(self, array: str) -> str:
        """SQL, as one item of a SELECT: a row for each element of an array."""
        ...
