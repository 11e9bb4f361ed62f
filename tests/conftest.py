"""Shared by all tests: no telemetry, no user configuration, and the paths of the committed sample."""

import os
import signal
import sys

import pytest

from align.cli import silence_telemetry
from tests.support import ROOT, warm

pytest_plugins = [
    "tests.support.changed", "tests.support.devices", "tests.support.durations", "tests.support.mlflow_file",
    "tests.support.schedule", "tests.support.small_blocks", "tests.support.time_limits",
]  # fmt: skip

silence_telemetry()
# A test run in the background ignores Ctrl-C, and so would each program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
warm.use_in_multiprocessing()
# Threads that share a tensor as small as the tests' wait for each other longer than they work: a busy machine takes ten
# times as long. Set before torch and numpy are imported; child processes inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Without a server Prefect would start one in the middle of a test, whose connections it never closes.
os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
# A worker's main module has no file. From that pyspark concludes that it is in a doctest and ends the process once
# Great Expectations imports it. The file named here is empty, since spawned processes run it.
if not hasattr(sys.modules["__main__"], "__file__"):
    sys.modules["__main__"].__file__ = str(ROOT / "tests" / "__init__.py")
# Never the user's own servers: a test that needs one starts it.
SERVERS = (
    "MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "PREFECT_API_URL", "MLFLOW_BACKEND_STORE_URI",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL", "ALIGN_ROOT",
)  # fmt: skip
for name in SERVERS:
    os.environ.pop(name, None)


def pytest_make_parametrize_id(val):
    """Names gzip's bytes, which hold the time: with them as names, workers that start a second apart would differ."""
    return "gzip" if isinstance(val, bytes) and val.startswith(b"\x1f\x8b") else None


@pytest.fixture(scope="module", autouse=True)
def _servers_of_a_file_end_with_it(request):
    """The next file's tests must not find the servers of this one's, which MLflow likes to leave in the environment."""
    yield
    left = {name: os.environ.pop(name) for name in SERVERS if name in os.environ}
    assert not left, f"{request.node.name} leaves {left}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Shards and a tokenizer to train on, which no test changes."""
    from tests.support import training_data  # with torch

    return training_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def sample():
    """data/sample: the committed web archive and the evaluation sets."""
    return ROOT / "data" / "sample"
