"""What integration tests share: MLflow and the local stack once a session, S3 once a file."""

import pytest

from tests.support import slurm
from tests.support.local_stack import shared_stack, stack
from tests.support.mlflow_server import mlflow_server
from tests.support.s3_server import serve

__all__ = ["mlflow_server", "shared_stack", "stack"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real S3 server. Tests that kill it start it again, and each has buckets of its own."""
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        yield running


@pytest.fixture(scope="module")
def cluster():
    """A real SLURM of two nodes, which only tests with the mark `cluster` may ask for."""
    with slurm.running() as running:
        yield running
