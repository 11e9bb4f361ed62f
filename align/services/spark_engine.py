"""The SQL engine on Spark: on this machine, a standalone cluster, a Connect server, YARN or Kubernetes.

`engine.spark_master` is passed to Spark unchanged. All other settings of a cluster (memory of executors, jars, ...) are
read from `spark-defaults.conf` in SPARK_CONF_DIR, as always with Spark. All machines must see the work folder under the
same path. The UI is off, and if the master is this machine the driver listens on loopback only.

A result is one file: Spark writes one file per sorted partition, and these are then joined in order.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.infrastructure import EngineConfig
from align.durable.files import replaced
from align.errors import ServiceError
from align.interfaces.sql import ROWS_AT_ONCE

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: Spark has no unsigned 64-bit integers and reads them as these.
_UNSIGNED = pa.decimal128(20, 0)


class SparkEngine:
    """See `align.interfaces.sql.Engine`."""

    def __init__(self, session: Any, scratch: Path, num_threads: int) -> None:
        self.scratch = scratch
        self.num_threads = num_threads
        self._session = session

    def view(self, name: str, files: Path) -> None:
        """See `Engine`."""
        fixed = next((at for at, part in enumerate(files.parts) if "*" in part), len(files.parts))
        pattern = "/".join(files.parts[fixed:])
        paths = sorted(Path(*files.parts[:fixed]).glob(pattern)) if pattern else [files]
        with clear_errors():
            frame = self._session.read.parquet(*(path.resolve().as_uri() for path in paths))
            frame.createOrReplaceTempView(name)

    def table(self, name: str, query: str) -> None:
        """See `Engine`."""
        folder = self.scratch / "tables" / name
        with clear_errors():
            self._session.sql(query).write.mode("overwrite").parquet(folder.as_uri())
            self._session.read.parquet(folder.as_uri()).createOrReplaceTempView(name)

    def num_parts(self, num_rows: int) -> int:
        """See `Engine`. Always one part, as Spark itself divides joins among its machines."""
        return 1

    def drop(self, name: str) -> None:
        """See `Engine`."""
        self._session.catalog.dropTempView(name)
        shutil.rmtree(self.scratch / "tables" / name, ignore_errors=True)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """See `Engine`."""
        with clear_errors():
            return [tuple(row) for row in self._session.sql(query).collect()]

    def write(self, query: str, path: Path, compression: str = "zstd", group_rows: int = ROWS_AT_ONCE) -> None:
        """See `Engine`."""
        folder = self.scratch / "result"
        with clear_errors():
            self._session.sql(query).write.mode("overwrite").parquet(folder.as_uri())
        try:
            with replaced(path, on_disk=False) as beside:
                _join(sorted(folder.glob("part-*.parquet")), beside, compression, group_rows)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def unnest(self, array: str) -> str:
        """See `Engine`."""
        return f"explode({array})"


def _join(parts: list[Path], path: Path, compression: str, group_rows: int) -> None:
    """Writes the rows of some parquet files, in their order, as one."""
    schema = pq.read_schema(parts[0])
    for index, field in enumerate(schema):
        if field.type == _UNSIGNED:
            schema = schema.set(index, pa.field(field.name, pa.uint64()))
    schema = schema.remove_metadata()
    with pq.ParquetWriter(path, schema, compression=compression) as writer:
        for part in parts:
            with pq.ParquetFile(part, pre_buffer=False) as file:  # otherwise pyarrow keeps what it has read
                for batch in file.iter_batches(group_rows):
                    writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=group_rows)


#: The session of this process, and how many blocks use it.
_open: list[Any] = []


@contextmanager
def open_session(config: EngineConfig, scratch: Path) -> Iterator[Any]:
    """Opens a session, or gives the one that is open, so that tasks and SQL are one application.

    The session ends with the first block. Raises ServiceError if pyspark or Java is missing, or the master does not
    respond.
    """
    if _open:
        yield _open[0]
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # pandas is newer than pyspark knows; it is not used here
            from pyspark.sql import SparkSession
    except ImportError:
        raise ServiceError(
            "engine.runner is spark, but pyspark is not installed; pip install 'align-mlops[spark]', or set local"
        ) from None
    master = config.spark_master
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else it is any python3 of the path
    connect = master.startswith("sc://")
    if not connect and not (
        shutil.which("java") or (Path(os.environ.get("JAVA_HOME", "/nowhere")) / "bin/java").exists()
    ):
        raise ServiceError("engine.runner is spark, but there is no Java; install Java 17 or newer, or set local")
    builder = SparkSession.builder.appName("align")
    builder = builder.remote(master) if connect else builder.master(master)
    for name, value in ({} if connect else _settings(config, scratch)).items():
        builder = builder.config(name, value)
    with clear_errors(f"engine.spark_master {master}: "), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        session = builder.create() if connect else builder.getOrCreate()
    try:
        with clear_errors():
            # settings that must match DuckDB, for any kind of session
            session.conf.set("spark.sql.ansi.enabled", "true")
            session.conf.set("spark.sql.session.timeZone", "UTC")
        _open.append(session)
        yield session
    finally:
        _open.clear()
        session.stop()


def _settings(config: EngineConfig, scratch: Path) -> dict[str, str]:
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "ERROR",
        "spark.sql.warehouse.dir": (scratch / "warehouse").as_uri(),
        "spark.sql.catalogImplementation": "in-memory",
        "spark.local.dir": str(scratch / "spill"),
    }
    local = config.spark_master.startswith("local")
    if local or urlsplit(config.spark_master).hostname in _LOOPBACK:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        settings |= {"spark.driver.bindAddress": "127.0.0.1", "spark.driver.host": "127.0.0.1"}
    if local:
        threads = config.num_threads or os.cpu_count() or 1
        settings |= {
            # in whole MiB; at least Spark's default, as Spark refuses the 400MB that DuckDB needs
            "spark.driver.memory": f"{max(1024, round(config.memory_bytes / (1 << 20)))}m",
            "spark.sql.shuffle.partitions": str(8 * threads),
        }
    return settings


@contextmanager
def clear_errors(where: str = "") -> Iterator[None]:
    """Turns Spark's errors into one line, which begins with `where`."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("pyspark", "py4j", "grpc"):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next(
            (line for line in lines if "Exception" in line or "[" in line), lines[0] if lines else repr(error)
        )
        raise ServiceError(f"{where}Spark: {reason[:300]}; see its log, or set engine.runner=local") from error
