"""MLflow's database in a file: whole, private, and beside the files that it names.

MLflow records the absolute address of each experiment's, run's and version's files. So in a copied checkout it would
write into the first one, and in a moved checkout it would find nothing: such a database is refused.
"""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote

from align.errors import ServiceError

#: The database of a checkout, in its root.
DATABASE = "mlflow.db"
#: The folder of artifacts, next to the database.
ARTIFACTS = "mlartifacts"


def artifacts_beside(database: Path) -> str:
    """The address of the folder of artifacts, `file:///...`."""
    return (database.parent / ARTIFACTS).absolute().as_uri()


def database_file(address: str) -> Path | None:
    """The file of a store that is a file; None for any other. That of this checkout belongs to it.

    Args:
        address: of the store.

    Raises:
        ServiceError: as `require_whole` and `require_here`.
    """
    if not address.startswith("sqlite:///"):
        return None
    file, own = Path(address.removeprefix("sqlite:///")), Path(os.environ.get("ALIGN_ROOT", ""), DATABASE)
    require_whole(file)
    if address != os.environ.get("MLFLOW_TRACKING_URI") or file.resolve() == own.resolve():
        require_here(file)  # not a store that many share: on another machine it may have another path
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


def require_here(database: Path) -> None:
    """Raises ServiceError if a database was moved or copied: its experiments' addresses say where it belongs."""
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT artifact_location FROM experiments").fetchall()
    except sqlite3.Error:  # there is none, it has no tables yet, or it cannot be read, which its user will report
        return
    for (address,) in rows:
        found = re.fullmatch(rf"file://(/.*)/{ARTIFACTS}/.+", address or "")
        if found and (place := Path(unquote(found[1]))).resolve() != database.parent.resolve():
            raise ServiceError(
                f"{database} belongs to {place}, where its files are: `make up` there, or move {database.name} away"
            )
