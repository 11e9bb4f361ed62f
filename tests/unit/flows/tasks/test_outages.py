"""Prefect's clients while their server does not answer, and a run's output when the worker that read it is dead."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.tasks import outages
from tests.support import ROOT, wait_until
from tests.support.killing import lives
from tests.support.mlflow_server import free_port


class _Server(BaseHTTPRequestHandler):
    """Refuses three times, as a server that starts or ends; then it is healthy. Keeps what was logged."""

    refusals = [500, 502, 503]  # noqa: RUF012 - of the one server of a test
    logged: list[str] = []  # noqa: RUF012 - one list for all, which the test reads

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        text, status = "[]", 200
        if self.path.startswith("/api/csrf-token"):
            text, status = "CSRF protection is disabled.", 422
        elif _Server.refusals:
            status = _Server.refusals.pop()
        elif self.path == "/api/logs/":
            _Server.logged += [line["message"] for line in json.loads(body)]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = _answer

    def log_message(self, *_):
        pass


@pytest.fixture(name="port")
def _port():
    claim, port = free_port()
    yield port
    claim.close()


#: Asks, and logs, before the server is there: the clients of a run that was started while it was.
CLIENT = """
import logging, uuid
from flows.tasks import outages
outages.RETRY_EVERY_S = 0.2
outages.wait_out_outages()
outages.wait_out_outages() # in a sub-flow
from prefect.client.orchestration import get_client
from prefect.logging.handlers import APILogWorker
line = dict(flow_run_id=str(uuid.uuid4()), name="x", level=20, timestamp="2026-01-01T00:00:00Z")
for number in range(3):
    APILogWorker.instance().send(line | {"message": f"line {number}"})
print("asking", flush=True)
with get_client(sync_client=True) as client:
    client.request("GET", "/health")
print("answered", flush=True)
"""


def test_clients_wait_for_a_server_and_lose_no_line(port, tmp_path):
    env = os.environ | {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
        "PREFECT_CLIENT_MAX_RETRIES": "0",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None and client.stderr is not None
        try:
            assert client.stdout.readline() == "asking\n"
            assert "does not answer (ConnectError); waiting for it" in client.stderr.readline()
            time.sleep(0.5)
            assert client.poll() is None
            with ThreadingHTTPServer(("127.0.0.1", port), _Server) as server:
                thread = threading.Thread(target=server.serve_forever, daemon=True)
                thread.start()
                rest = client.communicate(timeout=120)
                server.shutdown()
                thread.join()
        finally:
            client.kill()
    assert client.returncode == 0, rest
    assert rest[0] == "answered\n" and rest[1].count("answers again") >= 1
    assert _Server.logged == ["line 0", "line 1", "line 2"]


def test_a_run_that_has_to_end_asks_once(port, monkeypatch):
    monkeypatch.setattr(outages, "_outage", outages._Outage())
    monkeypatch.setattr(_Server, "refusals", [503] * 3)
    with ThreadingHTTPServer(("127.0.0.1", port), _Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            outages.end_without_waiting()
            with get_client(sync_client=True) as client, pytest.raises(PrefectHTTPStatusError, match="503"):
                client.request("GET", "/health")
        server.shutdown()
    assert _Server.refusals == [503] * 2


#: What a worker starts. Its output goes to a pipe of the worker's.
RUN = """
import sys, time
from pathlib import Path
from flows.tasks.outages import keep_output
print("starts", flush=True)
if len(sys.argv) > 1:
    keep_output(Path.cwd())
Path("ready").touch()
while not Path("dead").exists():
    time.sleep(0.02)
from rich.console import Console
Console(file=sys.stderr).print("a line of the log") # as Prefect logs
print("another", flush=True)
Path("result").write_text("whole")
"""
#: A program with the name of Prefect's: reads what its run prints, and waits to be killed.
WORKER = """
import subprocess, sys
run = subprocess.Popen([sys.executable, *sys.argv[2:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
print(run.stdout.readline(), run.pid, flush=True)
run.wait()
"""


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_outlives_its_worker(tmp_path, kept):
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, "-c", WORKER, "worker", "run.py", *(["keep"] if kept else [])]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as worker:
        said, pid = worker.stdout.readline().split()
        assert said == "b'starts\\n'"
        run = psutil.Process(int(pid))
        wait_until((tmp_path / "ready").exists)
        worker.kill()
    (tmp_path / "dead").touch()
    wait_until(lambda: not lives(run))  # nobody may be there to ask for it
    assert (tmp_path / "result").exists() == kept  # the reason for keep_output: without it the run ends there
    if kept:
        text = (tmp_path / ".align/logs/worker.log").read_text()
        assert "a line of the log" in text and "another" in text
