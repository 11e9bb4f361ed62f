"""Commands that are forks (tests/support/warm) behave as programs do."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.support import warm

TOLD = """
import json, os, sys
print(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ), sys.stdin.read()]))
print("error", file=sys.stderr)
sys.exit(7)
"""
SLEEPS = """
import os, signal, sys, time
if len(sys.argv) > 1:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def python(tmp_path):
    (tmp_path / "told.py").write_text(TOLD)
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    return warm.commands() / "python"


@pytest.mark.parametrize("kind", ["warm", "started"])
def test_words_folder_environment_streams_and_exit_code(kind, python, tmp_path):
    program = str(python) if kind == "warm" else sys.executable
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "ODD": "a=b\nc"}
    words = ["", "two words", "ü"]
    command = [program, "-m", "told", *words]
    done = subprocess.run(command, cwd=tmp_path, env=env, input="typed", capture_output=True, text=True, check=False)
    got_words, folder, environment, typed = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (7, "error\n")
    assert (got_words, folder, typed) == (words, str(tmp_path), "typed")
    assert {name: environment.get(name) for name in env} == env
    assert set(environment) - set(env) <= {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}  # the shell's


def test_other_code_is_started(python, tmp_path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align/__init__.py").touch()
    (tmp_path / "align/cli.py").write_text("print('other')")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([python.with_name("align")], cwd="/", env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "other\n"


@pytest.mark.parametrize("kind", ["warm", "started"])
def test_signals_reach_it_and_its_end_is_told(kind, python, tmp_path):
    program = str(python) if kind == "warm" else sys.executable
    for words, number, ends in (((), signal.SIGTERM, -signal.SIGTERM), (("x",), signal.SIGTERM, 9)):
        with subprocess.Popen([program, "-m", "sleeps", *words], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            process.send_signal(number)
            assert process.wait(60) == ends


def test_it_ends_with_a_caller_that_is_killed(python, tmp_path):
    with subprocess.Popen([str(python), "-m", "sleeps"], cwd=tmp_path, stdout=subprocess.PIPE) as process:
        command = psutil.Process(int(process.stdout.readline()))
        process.kill()
        command.wait(60)


def test_an_error_is_a_traceback_and_its_cpu_seconds_count(python, tmp_path):
    (tmp_path / "works.py").write_text("import time\nwhile time.process_time() < 0.5: pass\nraise ValueError('odd')\n")
    before = warm.spent_s()
    done = subprocess.run([str(python), "-m", "works"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("ValueError: odd\n")
    assert warm.spent_s() > before


def _send(connection):
    connection.send("through a pipe")


def _seen():
    parent = multiprocessing.parent_process()
    return "align.training.pretrain" in sys.modules, os.getppid(), parent.pid


def test_a_spawned_process_gets_its_pipes_and_has_imported_all():
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(there,))
    process.start()
    there.close()
    assert here.recv() == "through a pipe"
    with pytest.raises(EOFError):  # nothing else holds the pipe open
        here.recv()
    process.join(60)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        imported, server, parent = pool.submit(_seen).result()
    assert (imported, server, parent) == (True, *warm.server_pids(), os.getpid())
    assert len(list(Path(f"/proc/{server}/task").iterdir())) <= 2  # see the server: a fork would lose their locks
