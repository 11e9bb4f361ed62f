"""What the parts ask of a SQL engine. `align.services.engine` implements it on DuckDB, `spark_engine` on Spark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

#: Runs a query and returns its result, which is known to be small.
Rows = Callable[[str], list[tuple[Any, ...]]]

#: Rows of a row group in every parquet file that an engine writes.
ROW_GROUP_SIZE = 100_000


class Engine(Protocol):
    """One session. Names of views and tables are the caller's; they end with it.

    Attributes:
        scratch: a folder for the caller's own intermediate files; removed at the end.
        num_threads: how many threads the caller may use besides.
    """

    scratch: Path
    num_threads: int

    def view(self, name: str, files: Path) -> None:
        """Makes parquet files (a path, or a folder and a pattern such as `texts/*.parquet`) readable as a table."""
        ...

    def table(self, name: str, query: str) -> None:
        """Materialises a query, on disk where it does not fit in memory. A table has no order."""
        ...

    def drop(self, name: str) -> None:
        """Gives a table's room back."""
        ...

    def num_parts(self, num_rows: int) -> int:
        """In how many parts a join looks up so many numbers with each part in memory; as many as pay, at most."""
        ...

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """A query's result in memory: for what is known to be small."""
        ...

    def write(self, query: str, path: Path, compression: str = "zstd") -> None:
        """Writes a query's result as one parquet file, complete or not at all; in order where it has an ORDER BY.

        Args:
            query: what to write.
            path: where to.
            compression: as parquet calls it; `none` for what is soon read and thrown away.
        """
        ...

    def unnest(self, array: str) -> str:
        """SQL, as one item of a SELECT: a row for each element of an array."""
        ...
