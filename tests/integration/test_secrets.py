"""Secrets that users have in the environment and in git's settings are in nothing that a run records or shows."""

import json
import subprocess
import urllib.error
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.local_stack import SECRETS, Stack


def contents(root: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every file of the checkout, and all that git has: commits, trees, files, messages."""
    for path in root.rglob("*"):
        if path.is_file() and path.relative_to(root).as_posix() not in (".git/config", ".align/login"):
            yield str(path.relative_to(root)), path.read_bytes()
    git = ["git", "cat-file", "--batch-all-objects", "--batch"]
    yield "git", subprocess.run(git, cwd=root, capture_output=True, check=True).stdout


def assert_no_secrets(root: Path, secrets: Iterable[str], *shown: str) -> None:
    found = [
        (name, secret)
        for name, data in [*contents(root), *(("shown", text.encode()) for text in shown)]
        for secret in secrets
        if secret.encode() in data
    ]
    assert found == []


@pytest.mark.costs(7, "two whole runs, whose every file is searched")
def test_a_run_records_and_shows_no_secret(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [*SECRETS.values(), stack.login.partition(":")[2]]
    address = stack.mlflow.replace("http://", f"http://{stack.login}@")
    monkeypatch.setitem(stack.env, "MLFLOW_TRACKING_URI", address)
    done = stack.align_run("--name", "secrets", "--set", "pretrain.seed=8")
    assert done.returncode == 0, done.stdout + done.stderr
    api = f"{stack.mlflow}/api/2.0/mlflow"
    experiment = stack.ask(f"{api}/experiments/get-by-name?experiment_name=stub")["experiment"]["experiment_id"]
    runs = stack.ask(f"{api}/runs/search", {"experiment_ids": [experiment]})["runs"]
    assert "secrets" in {run["info"]["run_name"] for run in runs}  # the address with the login was used

    unavailable = f"http://me:{SECRETS['uri']}@127.0.0.1:9"
    monkeypatch.setitem(stack.env, "MLFLOW_TRACKING_URI", unavailable)
    failed = stack.align_run("--name", "refused", "--set", "pretrain.seed=9")
    assert failed.returncode == 1
    assert "MLflow at http://127.0.0.1:9" in failed.stderr

    assert_no_secrets(stack.root, secrets, done.stdout, done.stderr, failed.stdout, failed.stderr)
    logs = stack.ask("/logs/filter", {"logs": {}, "sort": "TIMESTAMP_DESC"})
    assert any(log["message"] == "pushing to http://127.0.0.1:9" for log in logs)


def test_a_login_in_a_parameter_is_refused_before_it_is_recorded(stack: Stack) -> None:
    address = f"https://me:{SECRETS['form']}@example.com"
    pipeline = stack.ask("/deployments/name/pipeline/local")["id"]
    rollback = stack.ask("/deployments/name/rollback/local")["id"]
    signed = f"https://bucket.example.com/a.warc.gz?X-Amz-Expires=9&X-Amz-Signature={SECRETS['form']}"
    values = ({"overrides": {"paths.archive": address}}, {"overrides": {"paths.archive": [address]}}, {"ref": address})
    values = (*values, {"overrides": {"paths.archive": signed}})
    parameters = [(pipeline, {"request": value}) for value in values] + [(rollback, {"reason": f"see {address}"})]
    for deployment, given in parameters:
        with pytest.raises(urllib.error.HTTPError) as error:
            stack.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": given})
        with error.value:
            assert error.value.code == 409
    done = stack.align_run("--set", f"paths.archive={address}")
    assert done.returncode == 1
    assert "parameter 'paths.archive' holds a login in its address" in done.stderr
    assert "infra/env.example" in done.stderr and len(done.stderr.splitlines()) == 1
    assert_no_secrets(
        stack.root, [SECRETS["form"]], done.stdout, done.stderr, json.dumps(stack.ask("/flow_runs/filter", {}))
    )
