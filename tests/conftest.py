"""Shared by all tests: no telemetry, no user configuration, and the paths of the committed sample."""

import os
from pathlib import Path

import pytest

from align.cli import silence_telemetry

silence_telemetry()
# Never the user's own servers: a test that needs one starts it.
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "PREFECT_API_URL"):
    os.environ.pop(name, None)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def sample() -> Path:
    """data/sample: the committed web archive and the evaluation sets."""
    return ROOT / "data" / "sample"
