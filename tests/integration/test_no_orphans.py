"""No rank outlives the command that started it, and the next one resumes."""

import os
import re
import signal
import subprocess

import psutil
import pytest

from tests.support import ROOT, killing, wait_until
from tests.support.training_data import RECIPE
from tests.support.training_project import write_project


def require_gone(pids):
    """Waits a moment for processes that end because another one did."""
    assert pids
    wait_until(lambda: not any(map(killing.lives, pids)))


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_launcher(data, tmp_path, number):
    recipe = RECIPE | {"num_steps": 100_000, "checkpoint_every_steps": 5, "num_processes": 2}
    command = write_project(tmp_path, data, recipe)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as first:
        wait_until(lambda: [*tmp_path.glob("checkpoints/*/step-*.pt")], 240, alive=lambda: first.poll() is None)
        below = {process.pid for process in psutil.Process(first.pid).children(recursive=True)}
        if number is signal.SIGTERM:
            os.killpg(first.pid, number)  # as a flow that is cancelled, or a terminal, sends it
        else:
            first.send_signal(number)
        _, errors = first.communicate(timeout=120)
    require_gone(below)
    if number is signal.SIGTERM:
        assert "SIGTERM" in errors.splitlines()[-1] and "Traceback" not in errors
    again = write_project(tmp_path, data, recipe)
    with subprocess.Popen(again, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as second:
        for line in second.stderr:
            if re.search("resuming from step", line):
                break
        else:
            pytest.fail("it did not resume")
        second.terminate()
        second.communicate(timeout=120)
