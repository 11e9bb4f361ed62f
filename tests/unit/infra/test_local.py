"""infra/local.py: how `make down` stops what `make up` started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra import local

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


def test_a_hanging_worker_is_ended_once_its_runs_have_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "STOP_TIMEOUT_S", 0.5)
    worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        local._stop(worker.pid)
        assert (tmp_path / "saved").exists()
        assert worker.wait(60) == -9
    finally:
        worker.kill()
        worker.wait()  # or its Popen warns in a later test
