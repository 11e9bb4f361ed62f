"""`make up`, runs, and the dumps of docs/operations.md, with PostgreSQL for Prefect and MLflow."""

import os
import re
import subprocess

import psutil
import pytest

from align.services.git import git
from tests.support import ROOT, missing
from tests.support.local_stack import Stack, stub_repository
from tests.support.postgresql import PASSWORD, URL_PASSWORD, create, postgresql_server, programs, sql

pytestmark = pytest.mark.cluster
__all__ = ["postgresql_server"]


@pytest.fixture(name="stack")
def _stack(tmp_path, postgresql):
    try:
        import pg8000  # type: ignore[import-untyped, unused-ignore]  # noqa: F401  (MLflow's driver, in the extra)
    except ImportError:
        missing("needs pg8000, the extra [postgresql]")
    root = tmp_path / "repo"
    stub_repository(root)
    stack = Stack(root)
    prefect, mlflow = create(postgresql, "prefect", "mlflow")
    stack.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = prefect.replace("://", "+asyncpg://")
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_TRACKING_URI"):
        stack.env[name] = mlflow.replace("://", "+pg8000://")
    stack.env["PATH"] = f"{root / 'bin'}{os.pathsep}{programs()}{os.pathsep}{stack.env['PATH']}"
    try:
        yield stack
    finally:
        stack.run("-m", "infra.local", "down")
        stack.close()


def count(stack, variable, table):
    place, _, database = stack.env[variable].rpartition("/")
    return int(sql(int(place.rpartition(":")[2]), f"SELECT count(*) FROM {table}", database).stdout)


def typed(program, env):
    """Types the lines of docs/operations.md that start a program."""
    lines = re.findall(rf"^    ({program} .*)$", (ROOT / "docs/operations.md").read_text(), re.M)
    assert len(lines) == 2
    for line in lines:
        done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_stack_keeps_its_runs_there_and_they_come_back_elsewhere(stack, postgresql, tmp_path):
    stack.up()
    run = stack.start({"name": "clicked"})
    assert stack.wait_for(run, "COMPLETED", "FAILED", "CRASHED", timeout_s=300) == "COMPLETED"
    assert not (stack.root / "mlflow.db").exists() and not (stack.root / ".align/prefect/prefect.db").exists()
    assert count(stack, "PREFECT_SERVER_DATABASE_CONNECTION_URL", "flow_run") >= 4
    assert count(stack, "MLFLOW_BACKEND_STORE_URI", "runs") == 1
    for process in psutil.process_iter(["cmdline"]):
        assert not any(word in " ".join(process.info["cmdline"] or []) for word in (PASSWORD, URL_PASSWORD))
    api = f"{stack.mlflow}/api/2.0/mlflow"
    found = stack.ask(f"{api}/experiments/get-by-name?experiment_name=stub")["experiment"]
    assert found["artifact_location"].startswith((stack.root / "mlartifacts").as_uri())  # not in the run's worktree

    port = int(postgresql.rstrip("/").rpartition(":")[2])
    place = {"BACKUP": str(tmp_path), "newest": str(tmp_path / "new"), "PGHOST": "127.0.0.1", "PGPORT": str(port)}
    (tmp_path / "new").mkdir()
    typed("pg_dump", stack.env | place | {"PGUSER": "align", "PGPASSWORD": PASSWORD})
    stack.down()
    lost = stack.root.rename(tmp_path / "lost")
    git(tmp_path, "clone", "--quiet", f"file://{lost}", str(stack.root))
    git(stack.root, "fetch", "--quiet", "origin", "refs/heads/run/*:refs/heads/run/*")
    for name in ("prefect", "mlflow"):
        assert sql(port, f"DROP DATABASE {name}").returncode == 0
    create(postgresql, "prefect", "mlflow")
    typed("pg_restore", stack.env | place | {"PGUSER": "align", "PGPASSWORD": PASSWORD})
    (stack.root / "bin/align").chmod(0o755)
    stack.up()
    assert stack.ask(f"/flow_runs/{run}")["state_type"] == "COMPLETED"
    found = stack.ask(f"{api}/experiments/get-by-name?experiment_name=stub")["experiment"]
    assert found["artifact_location"].startswith((stack.root / "mlartifacts").as_uri())
    assert git(stack.root, "rev-parse", "--verify", "run/clicked")
