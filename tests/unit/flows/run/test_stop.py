"""The first signal ends a run in order, a second one at once, and so does time."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from tests.support import ROOT, wait_until
from tests.support.killing import kill_family, lives
from tests.support.warm import commands

#: Works in a child with a session of its own, as a stage does. Takes ten minutes to end in order if it is told so.
RUN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN if "ignored" in sys.argv else signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup's children ignore it
from prefect.utilities.engine import capture_sigterm
from flows.run import stop
stop.IN_ORDER_S = 1.0 if "short" in sys.argv else 600.0
try:
    with stop.in_order(), stop.raise_if_stopped(), capture_sigterm():
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        try:
            print("works", child.pid, flush=True)
            time.sleep(1 if "ignored" in sys.argv else 600)
        except stop.Stopped as ended:
            print(ended, stop.is_stopping(), flush=True)
            if "wrapped" in sys.argv:
                raise ValueError("what pydantic makes of it") from ended
        try:
            stop.require_running()  # somebody swallowed the first one
        except stop.Stopped as ended:
            print("again", ended, flush=True)
        if "slow" in sys.argv:
            time.sleep(600)
except stop.Stopped as ended:
    print("at last", ended, flush=True)
finally:
    child.kill()
print("ends with", stop.exit_code(), flush=True)
"""


@pytest.fixture(autouse=True)
def _obeys_sighup():
    """What is started from a test run under nohup would ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@contextmanager
def working(*words):
    """The run, once it works, and its child."""
    command = [str(commands() / "python"), "-c", RUN, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            assert run.stdout
            word, pid = run.stdout.readline().split()
            assert word == "works"
            yield run, psutil.Process(int(pid))
        finally:
            kill_family(run.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_a_run_in_order(number):
    with working() as (run, child):
        run.send_signal(number)
        said = run.communicate(timeout=60)[0].splitlines()
    stopped = f"stopped by {number.name}"
    assert said[0].startswith("align: stopping, ")
    assert said[1:] == [f"{stopped} True", f"again {stopped}", f"ends with {128 + number}"]
    assert run.returncode == 0 and not lives(child)


def test_an_error_that_a_signal_became_is_the_signal():
    with working("wrapped") as (run, _):
        run.send_signal(signal.SIGTERM)
        said = run.communicate(timeout=60)[0]
    assert said.endswith("stopped by SIGTERM True\nat last stopped by SIGTERM\nends with 143\n") and run.returncode == 0


def test_make_and_timeout_send_one_signal_twice_and_a_second_one_ends_all_at_once():
    with working("slow") as (run, child):
        assert run.stdout
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline().startswith("align: stopping")
        run.send_signal(signal.SIGTERM)
        assert run.stdout.readline() == "stopped by SIGTERM True\n"
        time.sleep(0.6)
        assert run.poll() is None and lives(child)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=60)[0]
    assert "align: ended at once; the next run repairs what this one leaves" in said
    assert run.returncode == 128 + signal.SIGTERM and not lives(child)


def test_a_run_that_cannot_end_in_order_ends_in_time():
    with working("slow", "short") as (run, child):
        run.send_signal(signal.SIGINT)
        assert "align: ended at once" in run.communicate(timeout=60)[0]
    assert run.returncode == 128 + signal.SIGINT
    wait_until(lambda: not lives(child))


def test_a_signal_that_is_ignored_stays_ignored():
    with working("ignored") as (run, _):
        run.send_signal(signal.SIGINT)
        assert run.communicate(timeout=60)[0] == "ends with 130\n"


def test_a_signal_while_prefect_is_imported_is_one_line(tmp_path):
    """A stand-in of Prefect, which takes for ever."""
    (tmp_path / "prefect.py").write_text("import time\nprint('imports', flush=True)\ntime.sleep(600)\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows", "study", "{}"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        try:
            assert run.stdout and run.stdout.readline() == "imports\n"
            run.send_signal(signal.SIGINT)
            assert run.communicate(timeout=60)[0] == "align: interrupted\n"
        finally:
            run.kill()
    assert run.returncode == 128 + signal.SIGINT
