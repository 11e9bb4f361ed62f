"""Ctrl-C, SIGTERM and `timeout`, whose signal all processes of a run at a terminal get; it has a server of its own.

Whatever it does, it ends, without a traceback, and says what became of it in Prefect and MLflow.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psutil
import pytest

from align.local_stack import running_services
from tests.support.dvc_projects import commit_all
from tests.support.killing import kill_family, lives
from tests.support.local_stack import Stack, stub_repository

#: Stages and `align register` wait as long as checkpoints/wait-VERB exists; if checkpoints/stubborn does, SIGTERM ends
#: none of them.
WAITS = """\
verb = sys.argv[1]
waits = Path("checkpoints") / f"wait-{verb}"
def wait():
    if Path("checkpoints/stubborn").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("at work on", verb, flush=True)
    while waits.exists():
        time.sleep(0.1)
if verb == "register":
    wait()
"""
#: A run ends itself after 28 s (`flows.run.stop`); its server and Python need some more on a busy machine.
MOST_S = 60
SERVER, INGEST = "Prefect at http://127.0.0.1:", "at work on ingest"
MAKEFILE = 'demo:\n\t@"$(PYTHON)" -m align.cli run --name demo\n'


@dataclass
class Ended:
    """A run that was told to end.

    Attributes:
        code: its exit code; of a signal, its negative number.
        seconds: between the signal and the end.
        lines: what it printed.
        left: its processes that still live.
    """

    code: int
    seconds: float
    lines: list[str]
    left: list[list[str]]


@pytest.fixture(name="alone")
def _alone(tmp_path):
    """A checkout without servers."""
    root = tmp_path / "repo"
    stub_repository(root)
    program = root / "bin/align"
    text = program.read_text().replace("verb = sys.argv[1]\n", WAITS)
    program.write_text(text.replace("value = values[", "wait()\nvalue = values["))
    (root / "Makefile").write_text(MAKEFILE)
    commit_all(root, "waits")
    (root / "checkpoints").mkdir()
    stack = Stack(root)
    yield stack
    stack.close()


def waits(stack, verb):
    (stack.root / f"checkpoints/wait-{verb}").touch()


def stop(stack, when, number, *command, again_after_s=None, send=os.killpg):
    """Starts `command`, and sends a signal to its whole group, or to itself, once it prints a line with `when`."""
    began, family = 0.0, list[psutil.Process]()
    with subprocess.Popen(
        command, cwd=stack.root, env=stack.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as run:  # fmt: skip
        try:
            lines = []
            for line in run.stdout:
                lines.append(line.rstrip())
                if when in line and not began:
                    family = psutil.Process(run.pid).children(recursive=True)
                    began = time.monotonic()
                    send(run.pid, number)
                    if again_after_s is not None:
                        threading.Timer(again_after_s, os.killpg, (run.pid, number)).start()
            code = run.wait(60)
            seconds = time.monotonic() - began
            left = [process.cmdline() for process in family if lives(process)]
        finally:
            kill_family(run.pid)
    assert began, lines
    return Ended(code, seconds, lines, left)


def run_of(name):
    return [sys.executable, "-m", "align.cli", "run", "--name", name]


def in_order(stack, ended, code):
    """What holds at every moment."""
    text = "\n".join(ended.lines)
    assert ended.code == code and ended.seconds < MOST_S and not ended.left, (ended, text)
    assert "Traceback" not in text and "Crash detected" not in text, text
    with sqlite3.connect(stack.root / ".align/prefect/prefect.db") as prefect:
        kinds = {
            kind for table in ("flow_run", "task_run") for (kind,) in prefect.execute(f"select state_type from {table}")
        }
    assert kinds <= {"COMPLETED", "CANCELLED"}, text
    assert not list((stack.root / ".align/runs").glob("*"))
    with sqlite3.connect(stack.root / "mlflow.db") as runs:
        assert {status for (status,) in runs.execute("select status from runs")} <= {"KILLED", "FINISHED"}


@pytest.mark.kill
def test_ctrl_c_at_make_demo_in_training(alone):
    waits(alone, "pretrain")
    ended = stop(alone, "at work on pretrain", signal.SIGINT, "make", "demo", f"PYTHON={sys.executable}")
    said = [line for line in ended.lines if line.startswith("align: ")]
    assert said[-1].startswith(
        "align: stopped by SIGINT in pretrain. Finished stages are cached: the same command goes"
    )
    assert len(said) == 2 and said[0].startswith("align: stopping")
    in_order(alone, ended, -signal.SIGINT)  # make tells its shell, which says 130
    assert (alone.root / "checkpoints/step").read_text() == "7"


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("verb", "when"), [
    ("", SERVER),
    ("ingest", INGEST),
    ("pretrain", "at work on pretrain"),
    ("", "Flow run 'data of r' - Finished in state Completed"),
    ("register", "at work on register"),
])  # fmt: skip
def test_a_run_stops_at_each_moment_and_goes_on_there(alone, verb, when, number):
    if verb:
        waits(alone, verb)
    ended = stop(alone, when, number, *run_of("r"))
    [_, said] = [line for line in ended.lines if line.startswith("align: ")]
    assert said.startswith(f"align: stopped by {number.name}") and "the same command goes on from there" in said
    if when != SERVER:
        in_order(alone, ended, 128 + number)
    else:
        assert ended.code == 128 + number and not ended.left and "Traceback" not in str(ended.lines)
    (alone.root / f"checkpoints/wait-{verb}").unlink(missing_ok=True)
    done = alone.run("-m", "align.cli", "run", "--name", "r")
    assert done.returncode == 0, done.stderr
    assert ("Task run 'ingest' - Finished in state Cached" in done.stderr) == (when not in (SERVER, INGEST))


@pytest.mark.kill
def test_timeout_ends_a_run_in_order(alone):
    """When its alarm comes, it sends SIGTERM to its child, and then to its group."""
    waits(alone, "pretrain")
    ended = stop(alone, "at work on pretrain", signal.SIGALRM, "timeout", "3600", *run_of("r"), send=os.kill)
    in_order(alone, ended, 124)
    assert (alone.root / "checkpoints/step").exists()


@pytest.mark.kill
@pytest.mark.parametrize("again_after_s", [1.0, None])
def test_a_stage_that_does_not_end(alone, again_after_s):
    """A second Ctrl-C ends it at once; without one it gets 25 s."""
    waits(alone, "pretrain")
    (alone.root / "checkpoints/stubborn").touch()
    ended = stop(alone, "at work on pretrain", signal.SIGINT, *run_of("r"), again_after_s=again_after_s)
    if again_after_s is None:
        assert ended.seconds > 20
        in_order(alone, ended, 130)
        return
    assert ended.code == 130 and ended.seconds < 20 and not ended.left
    assert ended.lines[-1] == "align: ended at once; the next run repairs what this one leaves"
    (alone.root / "checkpoints/wait-pretrain").unlink()
    done = alone.run("-m", "align.cli", "run", "--name", "r")
    assert done.returncode == 0 and "run 'r' was killed: in Prefect flow run r is Crashed" in done.stderr, done.stderr


@pytest.mark.kill
def test_the_server_of_a_killed_run_serves_the_next_one_which_ends_it(alone):
    waits(alone, "pretrain")
    ended = stop(alone, "at work on pretrain", signal.SIGKILL, *run_of("r"))
    assert ended.code == -signal.SIGKILL
    server = psutil.Process(running_services(alone.root)["prefect"]["pid"])
    (alone.root / "checkpoints/wait-pretrain").unlink()
    done = alone.run("-m", "align.cli", "run", "--name", "r")
    assert done.returncode == 0 and "run 'r' was killed: in Prefect flow run r is Crashed" in done.stderr, done.stderr
    assert not lives(server) and running_services(alone.root) == {}
