"""Real servers for the integration tests: MLflow once a session, the local stack once a module."""

from tests.support.local_stack import stack
from tests.support.mlflow_server import mlflow_server

__all__ = ["mlflow_server", "stack"]
