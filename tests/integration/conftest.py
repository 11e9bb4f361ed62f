"""Real servers for the integration tests, each once a session: MLflow, and the local stack."""

from tests.support.local_stack import shared_stack, stack
from tests.support.mlflow_server import mlflow_server

__all__ = ["mlflow_server", "shared_stack", "stack"]
