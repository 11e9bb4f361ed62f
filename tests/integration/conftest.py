"""Real servers for the integration tests, one a session."""

from tests.integration.mlflow_server import mlflow_server

__all__ = ["mlflow_server"]
