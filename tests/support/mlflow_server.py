"""A real MLflow server on loopback: one per test session, or a test's own, which it can kill and start again.

tests/integration/conftest.py registers the session's fixture with pytest. This module run as a program is the server:
MLflow's application, as infra/server.py makes it, without a guard.
"""

import os
import random
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ROOT, answers, wait_until, warm

_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}


class MlflowServer:
    """One data folder and its port, the same after every start."""

    def __init__(self, root):
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self._claim, port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self._command = [str(warm.commands() / "python"), "-m", "tests.support.mlflow_server", str(root), str(port)]
        self._process = None

    def start(self):
        """Returns when it answers."""
        with (self.root / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=os.environ | _QUIET, stdout=output, stderr=subprocess.STDOUT
            )
        process, log = self._process, self.root / "server.log"
        wait_until(lambda: answers(f"{self.uri}/health"), alive=lambda: process.poll() is None, says=log.read_text)

    def kill(self):
        """Kills it at once, as a crash does."""
        if self._process:
            warm.kill(self._process.pid)
            self._process.wait()
            self._process = None

    def close(self):
        """Kills it for good, and releases its port."""
        self.kill()
        self._claim.close()


@contextmanager
def serve(root):
    """A started server with its data in a new folder; killed at the end in any case."""
    server = MlflowServer(root)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """The URI of the session's server. Tests use experiment and model names of their own."""
    with serve(tmp_path_factory.mktemp("mlflow-server")) as server:
        yield server.uri


def free_port():
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


def main(root, port):
    """Serves until it is killed."""
    import uvicorn

    from infra.server import mlflow_app

    shared = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{root}/mlflow.db",
        "MLFLOW_ARTIFACTS_DESTINATION": str(root / "artifacts"),
    }
    uvicorn.run(mlflow_app(root, shared), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
