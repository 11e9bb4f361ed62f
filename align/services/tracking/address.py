"""Which MLflow this process uses, and for which runs, as the environment says. Nothing here imports MLflow."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from align.errors import DataError
from align.services.tracking.database import DATABASE

#: The store in the working directory, if no other store is named.
DEFAULT_URI = f"sqlite:///{DATABASE}"
_FILE = Path(DATABASE)
#: The label of a flow run with the person who started it, as the proxy of accounts knows them.
WHO = "align.who"


def current_run_id() -> str | None:
    """The run that a caller started and will end: MLFLOW_RUN_ID."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def current_flow_run_id() -> str | None:
    """The Prefect flow run that this process works for: ALIGN_FLOW_RUN_ID."""
    return os.environ.get("ALIGN_FLOW_RUN_ID") or None


def who_acts() -> str:
    """Who changes MLflow now: the flow run that this process works for, with who started it, or the user."""
    if flow_run := current_flow_run_id():
        person = os.environ.get("ALIGN_WHO")
        return f"{person}, by flow run {flow_run}" if person else f"flow run {flow_run}"
    return user()


def user() -> str:
    """The name of this process's user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "unknown"


def address() -> str:
    """The MLflow that this process uses now, with a login; a later change of folder or environment changes nothing."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_FILE.absolute()}"


def has_store() -> bool:
    """Whether MLflow was used from this directory before. A command that only reads must not create a store."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or _FILE.is_file()


def require_store() -> None:
    """Raises DataError if MLflow was not used before: a command that registers nothing must not create a store."""
    if not has_store():
        raise DataError(
            "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db; run `align register` first"
        )
