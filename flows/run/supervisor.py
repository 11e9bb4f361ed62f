"""A program that runs a command, and ends it with all its descendants when it is told to or when its own parent dies.

    python supervisor.py COMMAND [ARGUMENT...]

stdin is a pipe that the parent holds open: when it closes, because the parent closes it or dies, the command is
stopped. The command gets a process group of its own. Stopping means SIGTERM to the group (a trainer writes its
checkpoint), waiting at most GRACE_S, then SIGKILL to every descendant of the command, in any group: dvc exits at
SIGTERM at once and leaves the trainer running, and torch's launcher gives each rank a session of its own. A pipe is
used instead of a parent-death signal, which reaches one process only, and follows the thread that forked instead of the
process.

A command that is killed leaves its descendants to this program, which stops them in the same way.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil

#: An option of Linux's prctl.
PR_SET_CHILD_SUBREAPER = 36

#: If a signal ended the command, the exit code is this plus the signal's number, as in a shell.
SIGNALLED = 128
#: Less than the 30 s after which Prefect sends SIGKILL to a cancelled flow run.
GRACE_S = 25.0


def main(command: Sequence[str]) -> int:
    """Runs the command and returns its exit code, or SIGNALLED + the number of the signal that ended it."""
    _adopt_orphans()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    stopping = threading.Lock()

    def stop() -> None:
        with stopping:
            end_family(child.pid, GRACE_S)

    def stop_at_end_of_stdin() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    def stop_on_signal(_number: int, _frame: object) -> None:
        threading.Thread(target=stop).start()  # the handler itself runs in the thread that waits for the child

    signal.signal(signal.SIGTERM, stop_on_signal)
    signal.signal(signal.SIGINT, stop_on_signal)
    threading.Thread(target=stop_at_end_of_stdin, daemon=True).start()
    code = child.wait()
    with stopping:  # the command may end before its descendants do
        if code < 0:  # such as dvc, above a trainer that nobody would stop
            end_family(child.pid, GRACE_S)
        return code if code >= 0 else SIGNALLED - code


def _adopt_orphans() -> None:
    """Makes this process, instead of the machine's first one, the parent of a descendant whose parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_family(pid: int, grace_s: float) -> None:
    """Sends SIGTERM to the process group, waits, then sends SIGKILL to every descendant of ours that still runs."""
    family = psutil.Process().children(recursive=True)
    try:
        os.killpg(pid, signal.SIGTERM)
    except ProcessLookupError:  # the remaining ones have groups of their own
        for process in filter(lives, family):
            process.terminate()
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(map(lives, family)):
        time.sleep(0.1)
    for process in filter(lives, family):
        process.kill()


def lives(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody has reaped has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
