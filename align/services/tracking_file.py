"""MLflow's database file, read without MLflow: importing it and opening its store takes two CPU seconds.

For commands that only look (`align runs`, `align gc`). The tables are those of MLflow 3; `reader` gives MLflow itself
where a file lacks one of the columns, and where the store is no file.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from align.errors import ServiceError
from align.services import mlflow_address
from align.services.registry import Version
from align.services.tracked_run import TrackedRun
from align.services.tracking import Tracker
from align.services.tracking_store import PATIENCE_S, database_file

_RUNS = """
SELECT r.run_uuid, r.experiment_id, r.name, r.status, r.start_time, r.end_time, r.artifact_uri, r.lifecycle_stage
FROM runs r JOIN experiments e ON e.experiment_id = r.experiment_id
"""
_NEWEST_FIRST = "ORDER BY r.start_time DESC, r.run_uuid"
_VERSIONS = "SELECT name, version, run_id FROM model_versions WHERE current_stage <> 'Deleted_Internal' ORDER BY 1, 2"
#: The value of a row, by its table.
_VALUE = {"tags": "value", "params": "value", "latest_metrics": "CASE WHEN is_nan THEN 'nan' ELSE value END"}


class StoredRuns:
    """The runs and models in a file.

    Args:
        file: the database.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @cached_property
    def tracker(self) -> Tracker:
        """MLflow, to change something."""
        return Tracker()

    def runs(self) -> list[TrackedRun]:
        """As `Tracker.runs`, of all experiments."""
        where = "WHERE r.lifecycle_stage = 'active' AND e.lifecycle_stage = 'active'"
        rows = list(self._select(f"{_RUNS} {where} {_NEWEST_FIRST} LIMIT 1000"))
        tags, params = self._by_run("tags"), self._by_run("params")
        return [
            TrackedRun(run, str(place), name, status, (start or 0) / 1000, end and end / 1000, tags[run], params[run])
            for run, place, name, status, start, end, _, _ in rows
        ]

    def find_runs(self, experiment: str, key: str, value: str) -> list[str]:
        """As `Tracker.find_runs`."""
        where = "JOIN tags t ON t.run_uuid = r.run_uuid WHERE r.lifecycle_stage = 'active' AND r.status = 'FINISHED'"
        rows = self._select(
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

    def versions(self) -> list[Version]:
        """The versions of every registered model."""
        tags: defaultdict[tuple[str, int], dict[str, str]] = defaultdict(dict)
        for name, number, key, value in self._select("SELECT name, version, key, value FROM model_version_tags"):
            tags[name, number][key] = value
        return [Version(name, number, run, tags[name, number]) for name, number, run in self._select(_VERSIONS)]

    def every_run(self, experiment: str) -> Iterator[tuple[TrackedRun, str, tuple[str, ...], bool]]:
        """The runs of an experiment, also those in MLflow's trash: each with the address of its files, the names of its
        metrics, and whether it is in the trash.
        """
        tags, metrics = self._by_run("tags"), self._by_run("latest_metrics")
        for row in self._select(f"{_RUNS} WHERE e.name = ? {_NEWEST_FIRST}", experiment):
            run, place, name, status, start, end, files, stage = row
            found = TrackedRun(run, str(place), name, status, (start or 0) / 1000, end and end / 1000, tags[run], {})
            yield found, files or "", tuple(metrics[run]), stage == "deleted"

    def _by_run(self, table: str, run_id: str | None = None) -> defaultdict[str, dict[str, Any]]:
        found: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        query = f"SELECT run_uuid, key, {_VALUE[table]} FROM {table} WHERE run_uuid = coalesce(?, run_uuid)"
        for run, key, value in self._select(query, run_id):
            found[run][key] = value
        return found

    def _select(self, query: str, *values: str | None) -> Iterator[Any]:
        try:
            address = f"file:{quote(str(self._file))}?mode=ro"
            with closing(sqlite3.connect(address, uri=True, timeout=PATIENCE_S)) as connection:
                yield from connection.execute(query, values)
        except sqlite3.Error as error:
            raise ServiceError(f"MLflow's database {self._file} cannot be read: {error}") from None


def reader() -> StoredRuns | Tracker:
    """What reads the store that this process uses: its file as it is, or else MLflow.

    Raises:
        ServiceError: MLflow does not answer.
    """
    file = database_file(mlflow_address.address())
    if file is not None and file.is_file():
        stored = StoredRuns(file)
        with suppress(ServiceError):
            for query in (f"{_RUNS} LIMIT 0", _VERSIONS):
                list(stored._select(query))
            return stored
    return Tracker()
