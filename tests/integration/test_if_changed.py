"""`align run --if-changed`: nothing runs over the data of the champion, and a run begins once the source is another."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from align.config.params import write_params
from align.services.git import changes, git
from align.services.tracking.registry import CHAMPION
from align.services.tracking.tracker import Tracker
from flows.alerts import VARIABLE
from flows.retrain import PROMOTED, REVISION
from tests.support.killing import kill_family
from tests.support.local_stack import Stack, stub_repository

pytestmark = pytest.mark.full  # each run starts a server of its own

BODIES: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        BODIES.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hook() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    yield f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path, hook: str) -> Iterator[Stack]:
    """The stub pipeline, which reads a folder of pictures that git does not know."""
    root = tmp_path / "repo"
    stub_repository(root)
    dag = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(dag.replace("cmd: align ingest\n", "cmd: align ingest\n    deps: [pictures]\n"))
    write_params(root / "params.yaml", {"paths.archive": "pictures"})
    with (root / ".gitignore").open("a") as file:
        file.write("/pictures/\n")
    (root / "pictures").mkdir()
    (root / "pictures/a.jpg").write_bytes(bytes(1000))
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-am", "pictures")
    stack = Stack(root)
    stack.env |= {VARIABLE: hook}
    yield stack
    stack.close()


def with_champion(project: Stack, **tags: str) -> None:
    """Runs the pipeline once, and makes its result the champion."""
    first = project.align_run("--name", "first")
    assert first.returncode == 0, first.stderr[-3000:]
    tracker = Tracker(f"sqlite:///{project.root}/mlflow.db")
    given = {REVISION: git(project.root, "rev-parse", "run/first")} | tags
    tracker.registry.set_alias(
        tracker.registry.create_version("stub", tracker.start_run("stub", "first"), "model", given), CHAMPION
    )


def test_killed_while_it_runs_the_pipeline(project: Stack) -> None:
    """Its own flow run is given its end, too."""
    root = project.root
    with_champion(project)
    (root / "pictures/b.jpg").write_bytes(bytes(500))
    write_params(root / "params.yaml", {"pretrain.store_patience_s": 900.0})
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-am", "slow")
    command = [sys.executable, "-m", "align.cli", "run", "--name", "again", "--if-changed"]
    with subprocess.Popen(command, cwd=root, env=project.env, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr and any("working on pretrain" in line for line in run.stderr)
        kill_family(run.pid)
    done = project.run("-m", "align.cli", "runs", "--repair")
    assert done.returncode == 0, done.stderr
    assert "flow retrain was killed: in Prefect flow run retrain is Crashed, 2 sub-flows and" in done.stderr
    assert "run 'again' was killed: in MLflow its run is KILLED" in done.stderr
    assert list((root / ".align/runs").iterdir()) == [] == list((root / ".align/worktrees").iterdir())


def test_a_run_begins_only_if_the_source_changed(project: Stack) -> None:
    root = project.root
    refused = project.align_run("--if-changed", "--set", "pretrain.seed=2")
    assert refused.returncode == 1 and "--if-changed runs all of HEAD as it is" in refused.stderr
    none = project.align_run("--if-changed")
    assert none.returncode == 1
    assert "align: error: model 'stub' has no champion to compare the source with" in none.stderr

    with_champion(project, **{PROMOTED: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 100 * 86400))})
    BODIES.clear()
    same = project.align_run("--name", "again", "--if-changed")
    assert same.returncode == 0, same.stderr[-3000:]
    assert "0.0% of the source changed; not run again" in same.stdout
    assert [body["kind"] for body in BODIES] == ["champion_stale"]
    assert "promoted 100 days ago" in BODIES[0]["text"]
    assert git(root, "branch", "--list", "run/again") == ""

    (root / "pictures/b.jpg").write_bytes(bytes(500))
    more = project.align_run("--name", "again", "--if-changed")
    assert more.returncode == 0, more.stderr[-3000:]
    assert "nfiles: 2" in git(root, "show", "run/again:dvc.lock")
    assert changes(root) == []

    BODIES.clear()
    (root / "pictures/c.jpg").write_bytes(bytes(5000))
    write_params(root / "params.yaml", {"pretrain.store_patience_s": 299.0})  # the stub's loss is not finite
    git(root, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "-am", "bad")
    failed = project.align_run("--name", "failed", "--if-changed")
    assert failed.returncode == 1
    assert [body["kind"] for body in BODIES] == ["champion_stale", "run_failed"]
    assert "the loss is not finite" in BODIES[1]["text"] and BODIES[1]["run"] == "failed"
