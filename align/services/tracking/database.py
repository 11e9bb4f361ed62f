"""Keeps the addresses of files in MLflow's store right: beside the database, even after the folder was moved or copied.

MLflow records the absolute address of each experiment's, run's and version's files. So in a copied checkout it would
write into the first one, and in a moved checkout it would find nothing. The addresses are corrected here when the
database is opened.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from align.display.console import say
from align.errors import ServiceError

#: The database of a checkout, in its root.
DATABASE = "mlflow.db"
#: The folder of artifacts, next to the database.
ARTIFACTS = "mlartifacts"
#: Seconds to wait for another program that writes into the database.
PATIENCE_S = 60.0
#: The columns with addresses: those of MLflow 3. A table or column that a database lacks is passed over.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def artifacts_beside(database: Path) -> str:
    """The address of the folder of artifacts, `file:///...`."""
    return (database.parent / ARTIFACTS).absolute().as_uri()


def database_file(address: str) -> Path | None:
    """The file of a store that is a file; None for any other. That of this checkout is settled first.

    Args:
        address: of the store.

    Raises:
        ServiceError: as `require_whole` and `settle`.
    """
    if not address.startswith("sqlite:///"):
        return None
    file, own = Path(address.removeprefix("sqlite:///")), Path(os.environ.get("ALIGN_ROOT", ""), DATABASE)
    require_whole(file)
    if address != os.environ.get("MLFLOW_TRACKING_URI") or file.resolve() == own.resolve():
        settle(file)  # not a store that many share: on another machine it may have another path
    return file


def require_whole(database: Path) -> None:
    """Raises ServiceError if a database's file is cut off or not a database; an absent or empty file is whole."""
    if not database.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:  # it is being written to, or it cannot be opened, which its user will report
        return
    except sqlite3.DatabaseError as error:
        raise ServiceError(
            f"{database}: damaged ({error}); bring it back from a backup (docs/operations.md), or move it away "
            "to start with an empty one"
        ) from None


def make_private(database: Path) -> None:
    """Lets only its owner read a database in a file: a new one, which is made empty, and what SQLite has beside it."""
    os.close(os.open(database, os.O_RDONLY | os.O_CREAT, 0o600))
    for end in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):  # there is none, or it is another user's
            Path(f"{database}{end}").chmod(0o600)


def settle(database: Path) -> None:
    """Points the addresses of a database that was moved or copied at the files next to it, in one transaction.

    Only addresses in a folder `mlartifacts` of this machine are changed, and only if there is such a folder beside the
    database. Those of a server or of S3 stay, and those of a folder that is where they say, unless its own database is
    beside it: then this one is a copy, with files of its own.

    Raises:
        ServiceError: the database cannot be read or written.
    """
    if not database.is_file():
        return
    make_private(database)
    if not (database.parent / ARTIFACTS).is_dir():
        return
    here = artifacts_beside(database)
    try:
        with closing(sqlite3.connect(database, timeout=PATIENCE_S)) as connection:
            if not (elsewhere := _elsewhere(connection, database)):
                return
            with connection:
                for table, column in _present(connection):
                    for old in elsewhere:
                        connection.execute(
                            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                            (here, len(old) + 1, len(old) + 1, f"{old}/"),
                        )
    except sqlite3.Error as error:
        raise ServiceError(
            f"{database}: MLflow's database cannot be corrected after its folder moved: {error}"
        ) from None
    for old in elsewhere:
        say(f"MLflow: this folder was moved or copied; its artifacts are now those in {ARTIFACTS}/ here, not {old}")


def _elsewhere(connection: sqlite3.Connection, database: Path) -> list[str]:
    """The addresses of folders of artifacts, `.../mlartifacts`, from which this database was moved or copied."""
    if ("experiments", "artifact_location") not in set(_present(connection)):
        return []
    rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    roots = {found[1] for (address,) in rows if (found := re.fullmatch(rf"(.*/{ARTIFACTS})/.+", address or ""))}
    return sorted(root for root in roots if _is_left(root, database))


def _is_left(root: str, database: Path) -> bool:
    parts = urlsplit(root)
    if parts.scheme not in ("", "file") or parts.netloc:
        return False
    path = Path(unquote(parts.path) if parts.scheme else root)
    if path.parent.resolve() == database.parent.resolve():
        return False
    return not path.is_dir() or (path.parent / database.name).is_file()


def _present(connection: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    for table, column in ADDRESSES:
        columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if column in columns:
            yield table, column
