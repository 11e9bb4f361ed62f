"""Copies of Prefect's and MLflow's databases at one moment, also while their servers run, and back again."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from align.errors import DataError, ServiceError
from align.run import PREFECT_HOME
from align.services import postgresql
from align.services.tracking.database import ADDRESSES, settle

#: Seconds to wait for a server that writes.
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Database:
    """A database of the checkout.

    Attributes:
        name: for people.
        file: where SQLite keeps it, relative to the checkout.
        variable: names a database of PostgreSQL that is used instead.
    """

    name: str
    file: Path
    variable: str

    @property
    def dump(self) -> str:
        """The name of PostgreSQL's copy in a backup."""
        return f"{self.name}.pgdump"

    def is_used(self, root: Path) -> bool:
        """Whether anything was ever written to it here."""
        return postgresql.given(self.variable) is not None or (root / self.file).is_file()

    def save(self, root: Path, folder: Path) -> tuple[str, Path]:
        """Copies it, in one transaction, to a file in `folder`. Returns its name in a backup, and the file.

        Raises:
            DataError: the file is damaged.
            ServiceError: PostgreSQL or its programs fail.
        """
        if (url := postgresql.given(self.variable)) is not None:
            target = folder / self.dump
            _tool("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={target}")
            return f"databases/{self.dump}", target
        target = folder / self.file.name
        try:
            source = f"file:{(root / self.file).resolve().as_posix().replace('?', '%3f').replace('#', '%23')}?mode=ro"
            with (
                closing(sqlite3.connect(source, uri=True, timeout=_PATIENCE_S)) as live,
                closing(sqlite3.connect(target)) as copy,
            ):
                live.backup(copy)
                if (found := copy.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
                    raise DataError(f"{root / self.file}: the database is damaged: {found}")
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, whatever the live one has beside it
        except sqlite3.Error as error:
            raise DataError(f"{root / self.file}: cannot be copied: {error}") from None
        return self.file.as_posix(), target

    def is_empty(self, root: Path) -> bool:
        """Whether there is nothing to lose."""
        if (url := postgresql.given(self.variable)) is None:
            return not (root / self.file).exists()
        return not int(_tool("psql", url, "-XAtc", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"))

    def require_empty(self, root: Path) -> None:
        """Raises DataError if there is something to lose."""
        if not self.is_empty(root):
            where = self.variable if postgresql.given(self.variable) else root / self.file
            raise DataError(f"{where}: has data; restore into a checkout in which nothing was run, and empty databases")

    def load(self, dump: Path) -> None:
        """Fills the empty database of PostgreSQL, wholly or not at all."""
        url = postgresql.given(self.variable)
        if url is None:
            raise DataError(f"the backup has {self.name}'s database of PostgreSQL: set {self.variable} to an empty one")
        database = postgresql.for_tools(url)["PGDATABASE"]
        whole = ("--single-transaction", "--exit-on-error", "--no-owner")
        _tool("pg_restore", url, *whole, f"--dbname={database}", str(dump))


PREFECT = Database("prefect", PREFECT_HOME / "prefect.db", postgresql.PREFECT)
MLFLOW = Database("mlflow", Path("mlflow.db"), postgresql.MLFLOW)
DATABASES: Sequence[Database] = (PREFECT, MLFLOW)


def point_mlflow_here(root: Path, before: str, here: str) -> None:
    """Points MLflow's addresses at the folder of artifacts in this checkout.

    Args:
        root: the checkout.
        before: the folder's address where the backup was made.
        here: its address now.
    """
    if (url := postgresql.given(postgresql.MLFLOW)) is None:
        settle(root / MLFLOW.file)
        return
    for table, column in ADDRESSES:
        statement = (
            f"UPDATE {table} SET {column} = :'here' || substr({column}, length(:'before') + 1) "
            f"WHERE substr({column}, 1, length(:'before') + 1) = :'before' || '/'"
        )
        values = ("-v", "ON_ERROR_STOP=1", "-v", f"here={here}", "-v", f"before={before}")
        _tool("psql", url, "-X", *values, stdin=statement)


def _tool(program: str, url: str, *arguments: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            [program, *arguments], env={**os.environ, **postgresql.for_tools(url)}, input=stdin, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        raise ServiceError(f"{program}: not installed; it comes with PostgreSQL's client") from None
    if done.returncode:
        raise ServiceError(f"{program}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout
