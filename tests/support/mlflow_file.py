"""An MLflow that is a file, without the second that MLflow takes to make its tables.

tests/conftest.py registers this module with pytest.
"""

import shutil

import pytest

from align.services.tracking.tracker import Tracker


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory):
    """Makes `mlflow.db`, without runs and models, in a folder; returns its address."""
    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Tracker(f"sqlite:///{made}").registry.versions("none")

    def copy(folder):
        shutil.copyfile(made, folder / "mlflow.db")
        return f"sqlite:///{folder}/mlflow.db"

    return copy
