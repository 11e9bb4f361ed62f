"""A standalone Spark cluster on loopback: a master and two workers, which may be blind to a folder of this machine."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from tests.support import missing
from tests.support.mlflow_server import free_port

_DAEMON = "org.apache.spark.deploy"


@dataclass(frozen=True)
class Cluster:
    """The master's URL; the folder of its files, with one for each worker; and the workers."""

    url: str
    folder: Path
    workers: list["subprocess.Popen[bytes]"]

    def kill_worker(self, number):
        """SIGKILL to a worker and all that it has started, as a machine that loses its power."""
        worker = psutil.Process(self.workers[number].pid)
        for process in (*worker.children(recursive=True), worker):
            process.kill()
        self.workers[number].wait(60)


def needs_spark(java=True):
    """Says where this machine lacks pyspark, or the Java that runs it."""
    if find_spec("pyspark") is None:
        missing("needs pyspark, the extra [spark]")
    if java and shutil.which("java") is None:
        missing("Spark needs Java 17")


def _listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running_cluster(folder, *, num_workers=2, blind_to=None, environment=None):
    """Starts the cluster, and names its settings to Spark by SPARK_CONF_DIR; ends it.

    Args:
        folder: of its files.
        num_workers: of one core each.
        blind_to: workers see an empty folder in its place, as on another machine. It must exist.
        environment: of the tasks.
    """
    needs_spark()
    home, (claim, port) = Path(find_spec("pyspark").origin).parent, free_port()
    settings = {
        "spark.executor.memory": "512m",
        "spark.sql.shuffle.partitions": "4",
        "spark.pyspark.python": sys.executable,
    }
    settings |= {f"spark.executorEnv.{name}": value for name, value in (environment or {}).items()}
    (folder / "spark-defaults.conf").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    env = os.environ | {
        "SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_CONF_DIR": str(folder),
    }  # fmt: skip
    url, spark = f"spark://127.0.0.1:{port}", str(home / "bin/spark-class")
    commands = [[spark, f"{_DAEMON}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]]
    for number in range(num_workers):
        options = shlex.split("--host 127.0.0.1 --webui-port 0 -c 1 -m 600m -d")
        command = [spark, f"{_DAEMON}.worker.Worker", *options, str(folder / f"worker{number}"), url]
        if blind_to is not None:
            hidden = f"mount -t tmpfs none {shlex.quote(str(blind_to))} && exec {shlex.join(command)}"
            command = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", hidden]
        commands.append(command)
    processes = []
    try:
        for number, command in enumerate(commands):
            with (folder / f"{number}.log").open("wb") as log:
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            deadline = time.monotonic() + 60
            while number == 0 and not _listening(port):
                assert time.monotonic() < deadline, (folder / "0.log").read_text()[-2000:]
                time.sleep(0.2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPARK_CONF_DIR", str(folder))
            yield Cluster(url, folder, processes[1:])
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(100)
        claim.close()
