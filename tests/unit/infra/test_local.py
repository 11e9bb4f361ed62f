"""infra/local.py: what `make up` says of a program that ends at its start, and how `make down` stops programs."""

import os
import shutil
import subprocess
import sys

import psutil
import pytest

from align import local_stack
from align.config.params import write_params
from align.errors import ConfigError
from align.local_stack import flow_environment, prefect_login
from infra import local, worker
from tests.support import ROOT, wait_until
from tests.support.params import PARAMS_FILE

#: A worker that ignores SIGTERM, and its flow run, which takes a second to save.
WORKER = """\
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", '''
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(1)
    Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
Path("ready").touch()
time.sleep(60)
'''])
time.sleep(60)
"""
#: Starts the program that is its argument as `make up` starts a worker.
START = """\
import sys
from pathlib import Path
from align import local_stack
from align.errors import ServiceError
root = Path.cwd()
service = local_stack.start(root, "worker", [sys.executable, "-c", sys.argv[1]], {})
local_stack.save(root, {"worker": service})
try:
    local_stack.wait_for(root, "worker", service, "work pool local", lambda: False)
except ServiceError as error:
    sys.exit(str(error))
"""


def test_a_hanging_worker_is_ended_once_its_runs_have_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(local_stack, "STOP_TIMEOUT_S", 0.5)
    worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=tmp_path, start_new_session=True)
    try:
        wait_until((tmp_path / "ready").exists)
        local_stack.stop(psutil.Process(worker.pid))
        assert (tmp_path / "saved").exists()
        assert worker.wait(60) == -9
    finally:
        worker.kill()
        worker.wait()  # or its Popen warns in a later test


@pytest.mark.parametrize(("program", "said"), [
    ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
    ("raise ValueError('1 wrong\\n\\nport\\n  not a number\\n    see http://example.org')",
     "ValueError: 1 wrong | port | not a number"),
    ("print('one\\n\\n\\033[31mtwo\\nthree\\nfour')", "\\u001b[31mtwo | three | four"),
    ("pass", "nothing, it printed no line"),
])  # fmt: skip
def test_a_program_that_ends_at_its_start_is_said_with_the_end_of_its_log(tmp_path, program, said):
    log = local_stack.LOGS / "worker.log"
    (tmp_path / log).parent.mkdir(parents=True)
    (tmp_path / log).write_text("Traceback (most recent call last):\nError: of an earlier start\n")
    command, env = [sys.executable, "-c", START, program], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"worker did not start at work pool local; see {log}, which ends: {said}\n"


def test_the_search_service_knows_its_own_login_and_one_that_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql+asyncpg://me:secret@h/prefect")
    for name in ("MLFLOW_BACKEND_STORE_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "postgresql+pg8000://me:secret@h/mlflow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    shutil.copy(PARAMS_FILE, tmp_path)
    everything = flow_environment(tmp_path) | prefect_login(tmp_path)
    found = local._search_environment(tmp_path, everything, "http://127.0.0.1:5000")
    files = {
        name: (tmp_path / ".align" / name).read_text().strip() for name in ("login", "login_search", "login_reader")
    }
    assert len(set(files.values())) == 3
    assert found["ALIGN_SEARCH_LOGIN"] == files["login_search"]
    assert f"{found['MLFLOW_TRACKING_USERNAME']}:{found['MLFLOW_TRACKING_PASSWORD']}" == files["login_reader"]
    assert not [name for name, value in found.items() if files["login"] in value or "secret" in value]
    write_params(tmp_path / "params.yaml", {"store.objects": "s3://bucket/objects"})  # where its pictures are
    found = local._search_environment(tmp_path, flow_environment(tmp_path), "http://127.0.0.1:5000")
    assert [name for name, value in found.items() if "secret" in value] == ["AWS_SECRET_ACCESS_KEY"]


@pytest.mark.parametrize("pool", ["", "-h", "a b", "gpu;rm", "a/b", "x" * 101])
def test_a_name_that_is_no_pool_is_refused(tmp_path, pool):
    with pytest.raises(ConfigError, match="POOL="):
        worker.environment(tmp_path, pool)


def test_it_needs_a_server(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert worker.main(["gpu"]) == 1
    assert capsys.readouterr().err.startswith("align: error: PREFECT_API_URL is not set")


def test_it_talks_to_the_server_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    env = worker.environment(tmp_path, "gpu")
    assert (env["PREFECT_API_URL"], env["ALIGN_POOL"]) == ("http://127.0.0.1:9/api", "gpu")
    assert env["PREFECT_HOME"] == str(tmp_path / ".align/prefect")
