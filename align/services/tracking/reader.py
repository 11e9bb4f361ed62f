"""MLflow's database file, read without MLflow: importing it and opening its store takes two CPU seconds.

For commands that look, and often have nothing to write (`align runs`, `align register`). The tables are those of MLflow
3; `reader` returns MLflow itself if a file lacks one of the columns, or if the store is not a file.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from align.errors import ServiceError, without_logins
from align.services.tracking.address import DEFAULT_URI, address, named_address
from align.services.tracking.database import PATIENCE_S, database_file
from align.services.tracking.registry import Version
from align.services.tracking.runs_view import TrackedRun, view_tag
from align.services.tracking.tracker import Tracker, metric_name

_RUNS = """
SELECT r.run_uuid, r.experiment_id, r.name, r.status, r.start_time, r.end_time, r.artifact_uri, r.lifecycle_stage
FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id
"""
_NEWEST_FIRST = "ORDER BY r.start_time DESC, r.run_uuid"
_VERSIONS = "SELECT name, version, run_id FROM model_versions WHERE current_stage <> 'Deleted_Internal' ORDER BY 1, 2"
#: The value of a row, by its table.
_VALUE = {"tags": "value", "params": "value", "latest_metrics": "CASE WHEN is_nan THEN 'nan' ELSE value END"}


class StoredRuns:
    """The runs in a file.

    Attributes:
        uri: the address of the store, for people.
        registry: the models in the file.
    """

    def __init__(self, file: Path, uri: str) -> None:
        self._file, self.uri = file, uri
        self.registry = StoredModels(self)

    def runs(self) -> list[TrackedRun]:
        """As `Tracker.runs`, of all experiments."""
        where = "WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'"
        rows = list(self.select(f"{_RUNS} {where} {_NEWEST_FIRST} LIMIT 1000"))
        tags, params = self._by_run("tags"), self._by_run("params")
        return [
            TrackedRun(run, str(place), name, status, (start or 0) / 1000, end and end / 1000, tags[run], params[run])
            for run, place, name, status, start, end, _, _ in rows
        ]

    def find_runs(self, experiment: str, key: str, value: str) -> list[str]:
        """As `Tracker.find_runs`."""
        where = "JOIN tags t ON t.run_uuid = r.run_uuid WHERE r.lifecycle_stage = 'active' AND r.status = 'FINISHED'"
        rows = self.select(
            f"{_RUNS} {where} AND e.name = ? AND t.key = ? AND t.value = ? {_NEWEST_FIRST} LIMIT 100",
            experiment, key, value,
        )  # fmt: skip
        return [str(row[0]) for row in rows]

    def metrics(self, run_id: str) -> dict[str, float]:
        """As `Tracker.metrics`."""
        return {key: float(value) for key, value in self._by_run("latest_metrics", run_id)[run_id].items()}

    def tags(self, run_id: str) -> dict[str, str]:
        """As `Tracker.tags`."""
        return self._by_run("tags", run_id)[run_id]

    def has_view(self, experiment: str, metrics: Sequence[str], params: Sequence[str], pictures: Sequence[str]) -> bool:
        """Whether `Tracker.save_view` has saved this view."""
        key, value = view_tag([metric_name(name) for name in metrics], params, pictures)
        query = (
            "SELECT 1 FROM experiment_tags t JOIN experiments e ON e.experiment_id = t.experiment_id "
            "WHERE e.name = ? AND t.key = ? AND t.value = ?"
        )
        return bool(list(self.select(query, experiment, key, value)))

    def _by_run(self, table: str, run_id: str | None = None) -> defaultdict[str, dict[str, Any]]:
        found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        query = f"SELECT run_uuid, key, {_VALUE[table]} FROM {table} WHERE run_uuid = coalesce(?, run_uuid)"
        for run, key, value in self.select(query, run_id):
            found[run][key] = value
        return found

    def select(self, query: str, *values: str | None) -> Iterator[Any]:
        """The rows of a query.

        Raises:
            ServiceError: the file cannot be read, or has other tables.
        """
        try:
            address = f"file:{quote(str(self._file))}?mode=ro"
            with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE_S)) as connection:
                yield from connection.execute(query, values)
        except sqlite3.Error as error:
            raise ServiceError(f"MLflow's database {self._file} cannot be read: {error}") from None


class StoredModels:
    """The registered models in a file, as `align.services.tracking.registry.Registry` has them."""

    def __init__(self, stored: StoredRuns) -> None:
        self._stored = stored

    def versions(self, model: str) -> list[Version]:
        """All versions, oldest first."""
        tags: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
        for name, number, key, value in self._stored.select("SELECT name, version, key, value FROM model_version_tags"):
            tags[name, number][key] = value
        rows = self._stored.select(_VERSIONS)
        return [Version(name, number, run, tags[name, number]) for name, number, run in rows if name == model]

    def aliases(self, model: str) -> dict[str, int]:
        """Alias -> number of its version."""
        return dict(self._stored.select("SELECT alias, version FROM registered_model_aliases WHERE name = ?", model))


def reader() -> StoredRuns | Tracker:
    """A reader of the store that this process uses: its file as it is, or else MLflow.

    Raises:
        ServiceError: MLflow does not answer.
    """
    file = database_file(address())
    if file is not None and file.is_file():
        stored = StoredRuns(file, without_logins(named_address() or DEFAULT_URI))
        with suppress(ServiceError):
            for query in (f"{_RUNS} LIMIT 0", _VERSIONS):
                list(stored.select(query))
            return stored
    return Tracker()
