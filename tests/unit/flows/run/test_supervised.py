"""A supervised child: its output, and its end, also while what reads it fails."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from flows.run.supervised import CommandError, is_warning, last_line, run_supervised
from tests.support import wait_until
from tests.support.killing import lives

#: Prints more than a pipe holds, then leaves a result: a pipe that nobody reads would stop it, a closed one kill it.
TALKER = """
from pathlib import Path
for number in range(3000):
    print(f"step {number} " + "x" * 100, flush=True)
Path("result").write_text("whole")
"""


@pytest.mark.parametrize("failure", [SystemExit(1), OSError(28, "No space left on device"), ConnectionError("away")])
def test_a_child_ends_well_whatever_its_log_raises(tmp_path, failure):
    heard = []

    def log(line):
        if line.startswith("step"):
            raise failure
        heard.append(line)

    lines = run_supervised([sys.executable, "-c", TALKER], cwd=tmp_path, env=os.environ, log=log)
    assert (tmp_path / "result").read_text() == "whole"
    assert len(lines) == 3000
    assert len(heard) == 1 and heard[0].startswith(f"3000 lines could not be logged: {type(failure).__name__}")


#: As under DVC: a parent that dies of a signal at once, above a trainer that saves first.
TRAINER = """
import os, pathlib, signal, subprocess, sys, time
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "train"])
def save(*_):
    time.sleep(0.3)
    pathlib.Path("checkpoint").write_text("step 7")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
pathlib.Path("pid").write_text(str(os.getpid()))
print("training", os.getppid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def trainer(tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    return [sys.executable, "trainer.py"]


def test_a_killed_launcher_leaves_no_trainer(tmp_path, trainer):
    def kill(line):
        if line.startswith("training "):
            os.kill(int(line.split()[1]), signal.SIGKILL)

    with pytest.raises(CommandError, match="ended by SIGKILL; its last lines: training"):
        run_supervised(trainer, cwd=tmp_path, env=os.environ, log=kill)
    assert (tmp_path / "checkpoint").read_text() == "step 7"


def test_a_note_is_not_the_sentence_that_a_command_ends_with():
    assert (
        last_line(["gates", "version 2 is the champion", "note: a page was not drawn"]) == "version 2 is the champion"
    )
    assert last_line([]) == ""


def test_a_child_s_output_shows_no_login(tmp_path):
    heard = []
    script = "echo pushing to https://me:secret@host/repo >&2; exit 1"
    with pytest.raises(CommandError, match=r"pushing to https://host/repo$"):
        run_supervised(["sh", "-c", script], cwd=tmp_path, env=os.environ, log=heard.append)
    assert heard == ["pushing to https://host/repo"]


def test_what_commands_warn_of_is_told_from_what_they_say():
    warnings = ["warning: slow", "filter: warning: x", "pretrain: warning: step 3: effective rank 1, below 3"]
    others = ["pretrain: step 3: no warning: x", "a/b.py:3: UserWarning: old", "note: a warning: x"]
    assert [line for line in warnings + others if is_warning(line)] == warnings


@pytest.mark.parametrize(("script", "reason"), [
    ("echo 'align: error: nothing kept'; echo 'ERROR: failed to reproduce'; exit 1", "failed: nothing kept"),
    ("exit 3", "exit code 3"),
])  # fmt: skip
def test_a_failed_child_says_why(tmp_path, script, reason):
    with pytest.raises(CommandError, match=reason):
        run_supervised(["sh", "-c", script], cwd=tmp_path, env=os.environ, log=lambda line: None)


def test_interrupted_the_trainer_saves_and_nothing_is_left(tmp_path, trainer):
    def interrupt(line):
        if line.startswith("training"):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        run_supervised(trainer, cwd=tmp_path, env=os.environ, log=interrupt)
    assert (tmp_path / "checkpoint").read_text() == "step 7"
    assert not lives(int((tmp_path / "pid").read_text()))


def test_killed_the_flow_leaves_no_trainer(tmp_path, trainer):
    flow = (
        "import os, sys; from pathlib import Path; from flows.run.supervised import run_supervised\n"
        "heard = lambda line: Path(line.split()[0]).touch()\n"
        f"run_supervised({trainer!r}, cwd=Path.cwd(), env=os.environ, log=heard)\n"
    )
    with subprocess.Popen([sys.executable, "-c", flow], cwd=tmp_path) as process:
        wait_until((tmp_path / "training").exists)  # a line that nobody reads would end the trainer
        process.kill()
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not lives(pid))
    assert (tmp_path / "checkpoint").read_text() == "step 7"
