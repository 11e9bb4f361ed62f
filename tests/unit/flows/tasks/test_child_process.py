"""A supervised child while what reads its output fails, and while somebody wants it to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from flows.tasks.child_process import CommandError, Watch, last_line, run_supervised


def test_questions_that_fail_do_not_end_the_watch() -> None:
    ended, asked = threading.Event(), list[int]()

    def ask() -> BaseException | None:
        asked.append(1)
        if len(asked) < 3:
            raise ConnectionError("the server is unavailable")
        return KeyboardInterrupt("paused") if len(asked) == 5 else None

    with Watch(ask, every_s=0.01) as watch:
        watch.check()
        with watch.ending(ended.set):
            assert ended.wait(60)
        with pytest.raises(KeyboardInterrupt, match="paused"):
            watch.check()
        late = threading.Event()
        with watch.ending(late.set):
            assert late.is_set()  # work that starts afterwards is ended, too
    assert len(asked) == 5


def test_a_closed_watch_asks_no_more() -> None:
    asked = threading.Semaphore(0)
    with Watch(lambda: asked.release(), every_s=0.01):
        assert asked.acquire(timeout=60) and asked.acquire(timeout=60)
    threads = [thread for thread in threading.enumerate() if thread.name == "watch"]
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


#: Prints more than a pipe holds, then leaves a result: a pipe that nobody reads would stop it, a closed one kill it.
TALKER = """
from pathlib import Path
for number in range(3000):
    print(f"step {number} " + "x" * 100, flush=True)
Path("result").write_text("whole")
"""


@pytest.mark.parametrize("failure", [SystemExit(1), OSError(28, "No space left on device"), ConnectionError("away")])
def test_a_child_ends_well_whatever_its_log_raises(tmp_path: Path, failure: BaseException) -> None:
    heard: list[str] = []

    def log(line: str) -> None:
        if line.startswith("step"):
            raise failure
        heard.append(line)

    lines = run_supervised([sys.executable, "-c", TALKER], cwd=tmp_path, env=os.environ, log=log)
    assert (tmp_path / "result").read_text() == "whole"
    assert len(lines) == 3000
    assert len(heard) == 1 and heard[0].startswith(f"3000 lines could not be logged: {type(failure).__name__}")


#: Saves when it is told to end.
TRAINER = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("checkpoint").write_text("step 7")
    sys.exit(1)
signal.signal(signal.SIGTERM, save)
print("training", os.getppid(), flush=True)
time.sleep(60)
"""


def test_a_watch_ends_a_child_which_saves_first(tmp_path: Path) -> None:
    training: list[str] = []

    def ask() -> BaseException | None:
        return KeyboardInterrupt("suspended") if training else None

    with pytest.raises(KeyboardInterrupt, match="suspended"), Watch(ask, every_s=0.05) as watch:
        command = [sys.executable, "-c", TRAINER]
        run_supervised(command, cwd=tmp_path, env=os.environ, log=training.append, watch=watch)
    assert (tmp_path / "checkpoint").read_text() == "step 7"


#: As dvc above a trainer: waits for it, and does not survive.
LAUNCHER = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {TRAINER!r}], check=False)
"""


def test_a_killed_launcher_leaves_no_trainer(tmp_path: Path) -> None:
    def kill(line: str) -> None:
        if line.startswith("training "):
            os.kill(int(line.split()[1]), signal.SIGKILL)

    with pytest.raises(CommandError, match="ended by SIGKILL; its last lines: training"):
        run_supervised([sys.executable, "-c", LAUNCHER], cwd=tmp_path, env=os.environ, log=kill)
    assert (tmp_path / "checkpoint").read_text() == "step 7"


def test_a_note_is_not_the_sentence_that_a_command_ends_with() -> None:
    assert (
        last_line(["gates", "version 2 is the champion", "note: a page was not drawn"]) == "version 2 is the champion"
    )
    assert last_line([]) == ""
