"""What MLflow's server does not have here."""

import json
import urllib.error
import urllib.request

import pytest


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
