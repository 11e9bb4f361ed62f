"""The flows on a real Prefect server, a real worker and real DVC, over three stub stages in a repository."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.git_repository import git
from tests.support import ROOT
from tests.support.mlflow_server import free_port

DVC_YAML = """\
stages:
  ingest:
    cmd: align ingest
    params: [ingest]
    outs: ["${paths.reports}/ingest"]
    meta: {flow: data}
  pretrain:
    cmd: align pretrain
    deps: ["${paths.reports}/ingest"]
    params: [pretrain]
    outs: ["${paths.reports}/pretrain"]
    meta: {flow: training}
  index:
    cmd: align index
    deps: ["${paths.reports}/pretrain"]
    params: [index]
    outs: ["${paths.reports}/index"]
    meta: {flow: release}
metrics:
  - ${paths.reports}/pretrain/metrics.json
"""

PARAMS = """\
paths: {reports: reports, checkpoints: checkpoints}
ingest: {value: 1}
pretrain: {value: 1, seconds: 0} # fails when it is negative
index: {value: 1}
register: {experiment: stub, model_name: stub}
"""

#: A stub of all stages; on SIGTERM the trainer saves, as the real one does.
ALIGN = f"""\
#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@" # a shebang holds no path with a space in it
' '''
import json, signal, sys, time
from pathlib import Path
from ruamel.yaml import YAML
verb = sys.argv[1]
if verb in ("register", "promote", "rollback"):
    print(verb, *sys.argv[2:])
    sys.exit()
values = YAML(typ="safe").load(Path("params.yaml").read_text())[verb]
def save(*_):
    Path("checkpoints/step").write_text("7")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("working on", verb, flush=True)
time.sleep(max(values.get("seconds", 0), 0))
if values.get("seconds", 0) < 0:
    sys.exit("align: error: the loss is not finite")
folder = Path("reports") / verb
folder.mkdir(parents=True)
(folder / "metrics.json").write_text(json.dumps({{verb + "/value": values["value"]}}))
(folder / "report.json").write_text("{{}}")
"""


class Stack:
    """The stub repository with the local stack on free ports."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._claims, (prefect_port, mlflow_port) = zip(*(free_port() for _ in range(2)), strict=True)
        ports = {"ALIGN_PREFECT_PORT": str(prefect_port), "ALIGN_MLFLOW_PORT": str(mlflow_port)}
        self.api = f"http://127.0.0.1:{ports['ALIGN_PREFECT_PORT']}/api"
        path = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        self.env |= ports | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=self.root, env=self.env, capture_output=True, text=True, check=False
        )

    def align_run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "align.cli", "run", *arguments)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"Content-Type": "application/json"})
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:  # busy: retry, as Prefect's client does
                if error.code != 503 or time.monotonic() > deadline:
                    raise
                time.sleep(float(error.headers.get("Retry-After", 1)))

    def states(self, name: str) -> dict[str, str]:
        """Task run -> state, in the newest run of that name and its sub-flows."""
        runs = self.ask(
            "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "flow_runs": {"name": {"any_": [name]}}}
        )
        children = self.ask("/flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [runs[0]["id"]]}}})
        ids = [runs[0]["id"], *(run["id"] for run in children)]
        tasks = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": ids}}})
        return {task["name"]: task["state_name"] for task in tasks}

    def close(self) -> None:
        """The end: its ports may be others' again."""
        for claim in self._claims:
            claim.close()

    def start(self, request: dict[str, Any]) -> str:
        """A click on the deployment; returns the flow run's id."""
        deployment = self.ask("/deployments/name/pipeline/local")["id"]
        run = self.ask(f"/deployments/{deployment}/create_flow_run", {"parameters": {"request": request}})
        return str(run["id"])

    def wait_for(self, run: str, *states: str, timeout_s: float = 120) -> str:
        deadline = time.monotonic() + timeout_s
        state = ""
        while time.monotonic() < deadline:
            state = self.ask(f"/flow_runs/{run}")["state_type"]
            if state in states:
                break
            time.sleep(0.5)
        return state


def stub_repository(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "bin/align").write_text(ALIGN)
    (root / "bin/align").chmod(0o755)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "prefect.yaml", root)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text("/.align/\n/reports/\n/checkpoints\n/mlflow.db\n/mlartifacts/\n__pycache__/\n")
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-m", "stub")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root = tmp_path_factory.mktemp("flows") / "repo"
    stub_repository(root)
    stack = Stack(root)
    try:
        done = stack.run("-m", "infra.local", "up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield stack
    finally:
        stack.run("-m", "infra.local", "down")
    for url in (f"{stack.api}/health", f"http://127.0.0.1:{stack.env['ALIGN_MLFLOW_PORT']}/health"):
        with pytest.raises(OSError):
            urllib.request.urlopen(url, timeout=2)
    assert stack.run("-m", "infra.local", "down").returncode == 0  # nothing to stop is no error
    stack.close()


@pytest.fixture(scope="module")
def first_run(stack: Stack) -> str:
    """What the first run, called demo, printed: after it run/demo exists, and all stages are cached."""
    done = stack.align_run("--name", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_runs_are_visible_cached_and_recorded(stack: Stack, first_run: str) -> None:
    assert "3 stages ran (ingest, pretrain, index)" in first_run
    stages = {"ingest", "pretrain", "index"}
    states = stack.states("demo")
    assert {states[name] for name in stages} == {"Completed"}
    assert states["record"] == states["register"] == "Completed"
    assert git(stack.root, "status", "--porcelain") == "?? dvc.lock"
    assert f"register --revision {git(stack.root, 'rev-parse', 'run/demo')}" in first_run

    second = stack.align_run("--name", "demo")
    assert "0 stages ran, 3 came from the cache" in second.stdout, second.stdout + second.stderr
    states = stack.states("demo")
    assert {states[name] for name in stages} == {"Cached"}

    keys = {artifact["key"] for artifact in stack.ask("/artifacts/filter", {})}
    assert {"ingest-report", "pretrain-report", "index-report", "summary"} <= keys


@pytest.mark.timeout(600)
def test_a_click_runs_in_a_worktree(stack: Stack, first_run: str) -> None:
    run = stack.start({"name": "click", "overrides": {"pretrain.value": 5}})
    assert stack.wait_for(run, "COMPLETED", "FAILED", "CRASHED") == "COMPLETED"
    assert stack.states("click")["pretrain"] == "Completed"
    assert (stack.root / "params.yaml").read_text() == PARAMS
    assert list((stack.root / ".align/worktrees").iterdir()) == []
    diff = stack.run("-m", "dvc", "metrics", "diff", "run/demo", "run/click", "--json")
    change = json.loads(diff.stdout)["reports/pretrain/metrics.json"]["pretrain/value"]
    assert (change["old"], change["new"]) == (1, 5)


@pytest.mark.timeout(600)
def test_cancelled_from_the_ui_the_checkpoint_survives(stack: Stack) -> None:
    seen = {log["flow_run_id"] for log in stack.ask("/logs/filter", {"logs": {}})}
    run = stack.start({"name": "cancelled", "overrides": {"pretrain.seconds": 300}})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = stack.ask("/logs/filter", {"logs": {}, "sort": "TIMESTAMP_DESC"})
        if any(log["message"] == "working on pretrain" and log["flow_run_id"] not in seen for log in logs):
            break
        time.sleep(0.5)
    assert not (stack.root / "checkpoints/step").exists()
    stack.ask(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True})
    assert stack.wait_for(run, "CANCELLED", "CRASHED") == "CANCELLED"
    assert (stack.root / "checkpoints/step").read_text() == "7"
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            ["git", "rev-parse", "--verify", "run/cancelled"], cwd=stack.root, check=True, capture_output=True
        )


@pytest.mark.timeout(600)
def test_a_failed_stage_fails_the_run_in_one_line(stack: Stack, first_run: str) -> None:
    done = stack.align_run("--name", "failing", "--set", "pretrain.seconds=-1")
    assert done.returncode == 1
    last = [line for line in done.stderr.splitlines() if line.startswith("align: error:")]
    assert len(last) == 1 and last[0].endswith("the loss is not finite")
    assert "Traceback" not in done.stderr + done.stdout
    states = stack.states("failing")
    assert (states["ingest"], states["pretrain"]) == ("Cached", "Failed")
    assert "index" not in states


@pytest.mark.timeout(600)
def test_without_a_server(stack: Stack, tmp_path: Path) -> None:
    root = tmp_path / "repo"
    stub_repository(root)
    alone = Stack(root)
    done = alone.align_run("--name", "alone")
    assert done.returncode == 0, done.stdout + done.stderr
    alone.close()
    assert "3 stages ran" in done.stdout
    assert (root / ".align/prefect/prefect.db").exists()  # and nothing in the home directory


def test_a_taken_port_is_named(stack: Stack, tmp_path: Path) -> None:
    other = Stack(tmp_path)
    other.env["ALIGN_PREFECT_PORT"] = stack.env["ALIGN_PREFECT_PORT"]
    done = other.run("-m", "infra.local", "up")
    other.close()
    assert done.returncode == 1
    assert f"port {stack.env['ALIGN_PREFECT_PORT']} is taken" in done.stderr
