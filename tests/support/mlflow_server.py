"""A real MLflow server on loopback: one per test session, or a test's own, which it can kill and start again.

tests/integration/conftest.py registers the session's fixture with pytest.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}


class MlflowServer:
    """One data folder and its port, the same after every start."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._claim, port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--artifacts-destination", str(root / "artifacts"),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        with (self.root / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=self.root, env=os.environ | _QUIET, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.3)
        pytest.fail(f"MLflow did not start: {(self.root / 'server.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """Kills it at once, as a crash does."""
        self.signal(signal.SIGKILL)
        if self._process:
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Sends a signal to all its processes; a stopped server accepts requests and answers none."""
        if self._process:
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """Kills it for good, and releases its port."""
        self.kill()
        self._claim.close()


@contextmanager
def serve(root: Path) -> Iterator[MlflowServer]:
    """A started server with its data in a new folder; killed at the end in any case."""
    server = MlflowServer(root)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of the session's server. Tests use experiment and model names of their own."""
    with serve(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server.uri


def free_port() -> tuple[socket.socket, int]:
    """A free port and the socket that claims it until closed, as in tests/support/s3_server.py."""
    for port in random.sample(range(15000, 20000), 100):
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        return claim, port
    pytest.fail("no free port")
