"""What MLflow's server does not have here."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from tests.support import ROOT

#: What MLflow asks before it runs the code of a scorer that a client has stored.
ASKED = """
from pathlib import Path
from infra.server import mlflow_app
mlflow_app(Path(), {"MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db", "MLFLOW_ARTIFACTS_DESTINATION": "artifacts"})
from mlflow.genai.scorers import base
print(base._should_reconstruct_scorer_code())
"""


def test_its_assistant_which_runs_programs_of_the_machine_is_gone(mlflow_server):
    for method, path, body in (
        ("GET", "config", None),
        ("PUT", "config", {"providers": {"claude_code": {"selected": True}}}),
        ("POST", "message", {"message": "hello"}),
    ):
        data = None if body is None else json.dumps(body).encode()
        url = f"{mlflow_server}/ajax-api/3.0/mlflow/assistant/{path}"
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        with pytest.raises(urllib.error.HTTPError, match=r"HTTP Error 40[45]"):
            urllib.request.urlopen(request, timeout=30)
    with urllib.request.urlopen(f"{mlflow_server}/health", timeout=30) as answer:
        assert answer.status == 200


def test_it_knows_that_it_is_a_server_which_runs_no_code_of_a_client(tmp_path, empty_mlflow):
    empty_mlflow(tmp_path)
    here = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=tmp_path, env=here, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr
