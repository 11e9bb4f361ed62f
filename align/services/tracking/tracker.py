"""MLflow: runs, metrics and artifacts; a tracker's `registry` has the models. Only this module and the packaged model's
own file import MLflow.

MLFLOW_TRACKING_URI is its address, of a server or of a database. If it is unset, the file `mlflow.db` in the working
directory is used, with artifacts in `mlartifacts/`, and no server is needed. MLFLOW_RUN_ID names a run that a caller
started and will end: it is completed here and never ended (MLflow's fluent `start_run` would end it, so only the client
is used).

MLflow refuses `@` in a metric's name: `recall@10` becomes `recall_at_10` (`metric_name`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from align.durable.files import clear_leftovers, temporary_name
from align.errors import RefusedError, ServiceError, without_logins
from align.services.tracking.address import DEFAULT_URI
from align.services.tracking.database import DATABASE, artifacts_beside, database_file, make_private
from align.services.tracking.registry import Registry, Version
from align.services.tracking.tracked_run import TrackedRun, run_address, runs_address, tracked_run

#: A tag of a run: the Prefect flow run that it belongs to, by its id.
FLOW_RUN = "align.flow_run"
#: How a run ended that MLflow only calls KILLED or FAILED: it was `cancelled`, or `refused` before it began.
ENDED = "align.ended"
#: Why a run has no result, in a line; the branch that it became, and its commit; the stages that came from DVC's cache.
WHY, BRANCH, REVISION, CACHED_STAGES = "align.why", "align.branch", "align.git_revision", "cached_stages"
#: MLflow's own tags: of a run that is listed below another, the other; what started a run, such as EVALUATION.
PARENT, SOURCE = "mlflow.parentRunId", "mlflow.source.name"
EVALUATION = "align evaluate"

#: So many characters of a run's id name it.
_MIN_ID = 8
_LIMITS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with its defaults it waits minutes for an unavailable server
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is for results
}
Status = Literal["FINISHED", "FAILED", "KILLED"]

#: Of a request: MLflow accepts 1000 points and 100 parameters.
_POINTS_AT_ONCE = 500
_PARAMS_AT_ONCE = 100


def is_called(run: TrackedRun, words: str) -> bool:
    """Whether the words name a run: its name, its id in Prefect, or its id in MLflow or the beginning of it."""
    return words in (run.name, run.tags.get(FLOW_RUN)) or (len(words) >= _MIN_ID and run.run_id.startswith(words))


def metric_name(name: str) -> str:
    """The name of a metric in MLflow: `@` becomes `_at_`."""
    return name.replace("@", "_at_")


class Tracker:
    """An MLflow server, or a file that replaces it.

    Methods raise ServiceError within seconds if it cannot be reached, and RefusedError if it refuses.

    Attributes:
        uri: its address without credentials, for people.
        registry: the models that are registered there.
    """

    def __init__(self, uri: str | None = None) -> None:
        """Connects to `uri`; None takes MLFLOW_TRACKING_URI, or else the file."""
        for name, value in _LIMITS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # logs every attempt
        full = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
        self.uri = without_logins(full)
        self._local = not full.startswith(("http:", "https:", "databricks"))
        # Artifacts are stored next to the database, so that a worktree which logs into it holds none.
        self._database = Path(os.environ.get("ALIGN_ROOT", ""), DATABASE)
        if file := database_file(full):
            is_own = file.resolve() == self._database.resolve()
            self._database = file
            if not file.exists() and not os.access(file.parent, os.W_OK | os.X_OK):  # MLflow tries for 100 s
                raise ServiceError(
                    f"MLflow at {self.uri}: {file.parent} cannot be written to; change its permissions, or name "
                    "another store in MLFLOW_TRACKING_URI"
                )
            with self._asking():
                make_database(file)
            if is_own:  # a file that others were given may be read by them
                make_private(file)
            full = f"sqlite:///{file.resolve()}"  # MLflow keeps connections by address, even when the folder changes
        self._address = full
        with self._asking():
            client = MlflowClient(tracking_uri=full, registry_uri=full)
        self._client: Any = _Asked(client, self._asking)
        self.registry = Registry(self._client)

    # --- runs

    def runs(self, condition: str = "", experiment: str | None = None) -> list[TrackedRun]:
        """The runs of one experiment or all, at most a thousand, the newest first; those of an SQL-like condition."""
        experiments = self._client.search_experiments()
        ids = [found.experiment_id for found in experiments if experiment in (None, found.name)]
        return [tracked_run(run) for run in self._client.search_runs(ids, condition)] if ids else []

    def run(self, run_id: str) -> TrackedRun:
        """One run, by its id."""
        return tracked_run(self._client.get_run(run_id))

    def start_run(self, experiment: str, name: str, tags: Mapping[str, str] | None = None) -> str:
        """Starts a run, which the caller ends. With tag PARENT it is in the experiment of that run."""
        given = dict(tags or {})
        parent = given.get(PARENT)
        place = self._client.get_run(parent).info.experiment_id if parent else self._experiment(experiment)
        run = self._client.create_run(place, tags=given, run_name=name)
        return str(run.info.run_id)

    def page(self, run_id: str, server: str | None) -> str | None:
        """The address of a run's page; None if no server is known.

        Args:
            run_id: the run.
            server: the address of the one that shows this store, where the store is a file.
        """
        address = server if self._local else self.uri
        if address is None:
            return None
        experiment = self._client.get_run(run_id).info.experiment_id
        return run_address(address, experiment, run_id)

    def runs_page(self, experiment: str, server: str | None) -> str | None:
        """The address of the list of runs; None if no server or no experiment is."""
        address = server if self._local else self.uri
        found = self._client.get_experiment_by_name(experiment)
        return runs_address(address, found.experiment_id) if address and found else None

    def resume_run(self, run_id: str) -> None:
        """Makes a run that failed or was killed a running one again."""
        self._client.update_run(run_id, status="RUNNING")
        self.set_tags(run_id, {ENDED: "", WHY: ""})

    def rename_run(self, run_id: str, name: str) -> None:
        """Gives a run another name."""
        self._client.update_run(run_id, name=name)

    def end_run(self, run_id: str, *, status: Status = "FINISHED") -> None:
        """Ends a run with this status."""
        self._client.set_terminated(run_id, status)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Logs parameters. A parameter that the run already has may be logged again with the same value."""
        from mlflow.entities import Param

        entities = [Param(key, param_text(value)) for key, value in sorted(params.items())]
        for start in range(0, len(entities), _PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=entities[start : start + _PARAMS_AT_ONCE])

    def log_metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Logs metrics that have no steps."""
        self.log_series(run_id, [{"step": 0, **metrics}])

    def log_series(self, run_id: str, rows: Iterable[Mapping[str, float]], prefix: str = "") -> None:
        """Logs rows of {"step": n, name: value, ...}, without the points that the run already has.

        A series that was logged live, wholly or in part, is thus completed, and no point is logged twice.
        """
        known: dict[str, set[int]] = {}
        missing = []
        logged = self._client.get_run(run_id).data.metrics
        for row in rows:
            points = {name: value for name, value in row.items() if name != "step"}
            for name in points:
                key = metric_name(prefix + name)
                if key not in known:
                    history = self._client.get_metric_history(run_id, key) if key in logged else []
                    known[key] = {point.step for point in history}
            step = int(row["step"])
            new = {name: value for name, value in points.items() if step not in known[metric_name(prefix + name)]}
            missing.append({"step": step, **new})
        self.log_rows(run_id, missing, prefix)

    def log_rows(self, run_id: str, rows: Iterable[Mapping[str, float]], prefix: str = "") -> None:
        """Logs rows of {"step": n, name: value, ...} as they are, in their order.

        `time` in a row is not a metric but the row's time, in ms since 1970; without it, the time is now.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [
            Metric(metric_name(prefix + name), float(value), int(row.get("time", now)), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in ("step", "time")
        ]
        for start in range(0, len(points), _POINTS_AT_ONCE):
            self._client.log_batch(run_id, metrics=points[start : start + _POINTS_AT_ONCE])

    def last_steps(self, run_id: str) -> dict[str, int]:
        """The last step of each metric of a run, under MLflow's names."""
        metrics = self._client.get_run(run_id).data.to_proto().metrics
        return {metric.key: int(metric.step) for metric in metrics}

    def log_folder(self, run_id: str, folder: Path, name: str) -> None:
        """Uploads a folder's files as artifacts under `name`."""
        self._client.log_artifacts(run_id, str(folder), name)

    def log_pictures(self, run_id: str, pictures: Mapping[str, Path]) -> None:
        """Shows pictures under fixed keys, at step 0, so that those of several runs stand side by side; each once."""
        from align.pairs.picture import MAX_PIXELS, decode

        logged = [Path(file.path).name for file in self._client.list_artifacts(run_id, "images")]
        for key, path in pictures.items():
            if not any(name.startswith(f"{key.replace('/', '~')}+") for name in logged):
                image = decode(path.read_bytes(), max_pixels=MAX_PIXELS)
                self._client.log_image(run_id, image, key=key, step=0)

    def log_tables(self, run_id: str, tables: Mapping[str, Mapping[str, list[Any]]]) -> None:
        """Shows tables: name -> column -> cells. MLflow's `log_table` would append to what a killed process wrote."""
        files = {f"tables/{name}.json": table for name, table in tables.items()}
        for file, table in files.items():
            rows = [list(row) for row in zip(*table.values(), strict=True)]
            self._client.log_dict(run_id, {"columns": list(table), "data": rows}, file)
        if files:  # the pages of MLflow read this tag
            shown = [{"path": file, "type": "table"} for file in files]
            self._client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(shown))

    def table(self, run_id: str, name: str) -> list[list[Any]]:
        """The rows of a table; none if the run has no such table."""
        with tempfile.TemporaryDirectory(prefix="align-") as folder:
            file = self.artifact(run_id, f"tables/{name}.json", Path(folder))
            return list(json.loads(file.read_bytes())["data"]) if file else []

    @contextmanager
    def watched(self, run_id: str) -> Iterator[None]:
        """Logs what this machine does meanwhile (processor, memory, disk, network, GPU), by MLflow's own monitor."""
        from mlflow.system_metrics import system_metrics_monitor

        made: Any = system_metrics_monitor.SystemMetricsMonitor
        with self._asking():
            monitor = made(run_id, 10, 3, resume_logging=True, tracking_uri=self._address)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Writes a text as artifact `name`."""
        self._client.log_text(run_id, text, name)

    def artifact(self, run_id: str, path: str, folder: Path) -> Path | None:
        """Downloads a file of a run's artifacts into a folder that exists; None if the run has no such file."""
        above = path.rpartition("/")[0]
        if path not in [item.path for item in self._client.list_artifacts(run_id, above or None)]:
            return None
        return Path(self._client.download_artifacts(run_id, path, str(folder)))

    def model_files(self, version: Version, folder: Path) -> Path:
        """Downloads the files of a registered model into a folder that exists; returns the model's folder in it."""
        from mlflow.artifacts import download_artifacts

        address = self._client.get_model_version_download_uri(version.name, str(version.number))
        with self._asking():
            return Path(download_artifacts(artifact_uri=address, dst_path=str(folder), tracking_uri=self._address))

    def log_dataset(self, run_id: str, name: str, digest: str, source: str) -> None:
        """Records the data that a run used. MLflow keeps the first 36 characters of the digest."""
        from mlflow.entities import Dataset, DatasetInput

        dataset = Dataset(name, digest[:36], "local", json.dumps({"uri": source}))
        self._client.log_inputs(run_id, [DatasetInput(dataset, [])])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a run."""
        from mlflow.entities import RunTag

        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            location = f"{artifacts_beside(self._database)}/{quote(name)}" if self._local else None
            return str(self._client.create_experiment(name, location))
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        from google.protobuf.json_format import ParseError  # type: ignore[import-untyped]
        from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        # requests' exceptions are OSErrors; ImportError: a database's driver; the last: what answers is not MLflow
        except (
            MlflowException, SQLAlchemyError, ImportError, OSError, ParseError, ValueError, TypeError, LookupError,
        ) as error:  # fmt: skip
            reason = without_logins(" ".join(str(getattr(error, "orig", error)).split()))[:300]
            status = ERROR_CODE_TO_HTTP_STATUS.get(getattr(error, "error_code", ""), 500)
            if 400 <= status < 500 and status not in (408, 429):
                raise RefusedError(f"MLflow at {self.uri} refuses: {reason}") from None
            todo = "is it up? `make up` starts one; unset MLFLOW_TRACKING_URI to use a file"
            if self._local:
                todo = "free some space" if "disk is full" in reason or "No space left" in reason else "see its log"
            raise ServiceError(f"MLflow at {self.uri}: {reason}; {todo}") from None


class _Asked:
    """MLflow's client; what a call of it raises is ours."""

    def __init__(self, client: Any, asking: Callable[[], AbstractContextManager[None]]) -> None:
        self._asked, self._asking = client, asking

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._asked, name)

        def call(*args: Any, **more: Any) -> Any:
            with self._asking():
                return method(*args, **more)

        return call


def make_database(file: Path) -> None:
    """Makes an empty database beside its file, which appears with all its tables; does nothing if there is a file.

    MLflow commits one table after the other: killed meanwhile, it leaves a file that it refuses from then on.
    """
    if file.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    clear_leftovers(file)
    part = temporary_name(file)
    part.mkdir()
    try:
        store: Any = SqlAlchemyStore  # untyped
        store(f"sqlite:///{part / file.name}", "mlruns").engine.dispose()
        if not file.exists():  # another process may have been first
            (part / file.name).replace(file)
    finally:
        shutil.rmtree(part)


def param_text(value: Any) -> str:
    """A parameter as MLflow keeps it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
