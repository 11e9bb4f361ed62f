"""PostgreSQL in place of the files of SQLite, for Prefect's server and for MLflow, where a variable names a database.

    ALIGN_PREFECT_DATABASE_URL, ALIGN_MLFLOW_DATABASE_URL    postgresql://user:password@host:port/database

The addresses hold passwords: they are never arguments of a command.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from urllib.parse import urlsplit

from align.errors import ConfigError

PREFECT, MLFLOW = "ALIGN_PREFECT_DATABASE_URL", "ALIGN_MLFLOW_DATABASE_URL"
#: How each program reaches it: a driver as SQLAlchemy names it, and its package.
_DRIVERS = {PREFECT: "asyncpg", MLFLOW: "pg8000"}


def given(variable: str) -> str | None:
    """The address as the user gave it; None without one.

    Raises:
        ConfigError: it names no database of PostgreSQL. The message does not show it.
    """
    url = os.environ.get(variable, "").strip()
    if not url:
        return None
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("postgresql", "postgres") and parts.hostname and parts.path.strip("/") and not parts.query
        _ = parts.port
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(f"{variable}: expected postgresql://<user>:<password>@host:port/database, without parameters")
    return url


def for_sqlalchemy(variable: str) -> str | None:
    """The address with the driver that the program uses; None without one.

    Raises:
        ConfigError: as `given`; or the driver is not installed.
    """
    url, driver = given(variable), _DRIVERS[variable]
    if url is None:
        return None
    if find_spec(driver) is None:
        raise ConfigError(f"{variable}: {driver} is not installed; pip install align-mlops[postgresql]")
    return f"postgresql+{driver}://{url.partition('://')[2]}"
