"""`kill -9` at seeded random moments, and then the same command to its end: the bytes must be those of a whole run."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

from tests.support import warm


class Command:
    """`align`, as a fork that has imported what it needs (`warm`); its own processes are such forks, too."""

    def __init__(self, arguments, cwd):
        self._errors = cwd.with_name(f"{cwd.name}.stderr")
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [*self._program(), *arguments], cwd=cwd, stdout=errors, stderr=errors, start_new_session=True
            )

    def _program(self):
        return [str(warm.commands() / "align")]

    def ended(self, within_s=None):
        """Waits for its end, at most for that time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        return self._process.returncode is not None

    def kill(self):
        """SIGKILL to this process alone: its workers must end by themselves."""
        warm.kill(self._process.pid)
        self._process.wait()

    def require_success(self):
        assert self.exit_code == 0, f"exit code {self.exit_code}: {self.errors[-2000:]}"

    @property
    def exit_code(self):
        return self._process.returncode

    @property
    def errors(self):
        """What it has written to stdout and stderr."""
        return self._errors.read_text("utf-8", "replace")


class Started(Command):
    """`align` in a process that is started, as a user does."""

    def _program(self):
        return [sys.executable, "-m", "align.cli"]

    def kill(self):
        self._process.kill()
        self._process.wait()


def lives(process):
    """Whether a process, or that of a number, has not ended (a zombie that nobody reaps has). One may end while it is
    asked about.
    """
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(process) if isinstance(process, int) else process
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def kill_family(pid):
    """SIGKILL to a process and all that it started, as when the power fails."""
    with suppress(psutil.NoSuchProcess):
        for process in (*psutil.Process(pid).children(recursive=True), psutil.Process(pid)):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def run(arguments, cwd, start=Command):
    """Runs `align` to its end; seconds."""
    began = time.monotonic()
    command = start(arguments, cwd)
    assert command.ended()
    command.require_success()
    return time.monotonic() - began


def kill_and_resume(arguments, cwd, *, seed, num_moments, whole_s, reset, start=Command):
    """Kills the command `num_moments` times, at seeded moments between a tenth of a whole run and nearly its end, each
    while it resumes what the last one left; then lets it finish. A run that ends before its moment is no kill (a
    machine may be faster than before): `reset` removes everything that it made, and another moment is drawn within its
    time.
    """
    moments = random.Random(seed)
    killed = 0
    for _ in range(4 * num_moments):
        began = time.monotonic()
        command = start(arguments, cwd)
        if command.ended(moments.uniform(0.1, 0.95) * whole_s):
            command.require_success()
            whole_s = min(whole_s, time.monotonic() - began)
            reset()
            continue
        command.kill()
        killed += 1
        if killed == num_moments:
            run(arguments, cwd, start)
            return
    raise AssertionError(f"killed {killed} times of {num_moments}: it always ended before")


def digests(folder):
    """Relative path -> sha256 of every file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def fresh(folder):
    """An empty folder in the place of whatever is there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class KillOnce:
    """A log function that kills its own process, the leading rank, at a step, unless the marker exists; never at 0."""

    def __init__(self, marker, step):
        self.marker, self.step = marker, step

    def __call__(self, metrics, step):
        if step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
