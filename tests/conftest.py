"""Shared by all tests: no telemetry, no user configuration, and the paths of the committed sample."""

import os
from pathlib import Path

import pytest

from align.cli import silence_telemetry
from tests.support import ROOT

silence_telemetry()
# Never the user's own servers: a test that needs one starts it.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "PREFECT_API_URL"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def sample() -> Path:
    """data/sample: the committed web archive and the evaluation sets."""
    return ROOT / "data" / "sample"
