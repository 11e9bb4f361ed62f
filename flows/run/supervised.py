"""Runs a command as a supervised child: its output goes to the log line by line, and no descendant outlives us."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from align.display.visible import visible
from align.errors import AlignError, without_logins
from flows.run import supervisor

#: An error quotes this many last lines if the command gave no reason itself.
TAIL_LINES = 5
#: An error quotes at most this many words of a command.
SHOWN_WORDS = 4
#: A line that begins like this is not a result.
NOTE = "note: "
_WARNING = re.compile(r"(\w+: )?warning: ")
_SIGNALS = {number.value: number.name for number in signal.Signals}


class CommandError(AlignError):
    """A child process failed; the message quotes its reason."""


def run_supervised(
    command: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Callable[[str], None],
) -> list[str]:
    """Runs a command to its end and returns its output, stdout and stderr together, as lines without logins.

    If this call is interrupted (a cancelled flow run, Ctrl-C), the command and its descendants are ended first, with
    time to write a checkpoint. Then the interruption is raised; see `flows.run.supervisor`.

    `log` is called with each line when it is printed; an exception of it does not disturb the command.

    Raises:
        CommandError: the exit code is not 0.
    """
    process = subprocess.Popen(
        [sys.executable, supervisor.__file__, *command],
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    lines: list[str] = []
    pump = threading.Thread(target=_pump, args=(process.stdout, lines, log), daemon=True)
    pump.start()
    try:
        code = process.wait()
    except BaseException:
        process.stdin.close()  # tells the supervisor to end the command
        process.wait(supervisor.GRACE_S + 4)
        raise
    finally:
        pump.join(2)  # bounded: a descendant that outlived the command may hold the pipe
        process.stdin.close()
    if code:
        shown = " ".join(command[:SHOWN_WORDS]) + (" …" if len(command) > SHOWN_WORDS else "")
        raise CommandError(f"`{shown}` failed: {_reason(lines, code)}")
    return lines


def last_line(lines: Sequence[str]) -> str:
    """The sentence in which a command that succeeded says what it did; notes may follow it."""
    return next((line for line in reversed(lines) if not line.startswith(NOTE)), "")


def is_warning(line: str) -> bool:
    """Whether a command's line is one of its warnings: `warning: ...`, `filter: warning: ...`."""
    return _WARNING.match(line) is not None


def _pump(stream: TextIO, lines: list[str], log: Callable[[str], None]) -> None:
    """Reads to the end even if the log fails: a pipe that nobody reads would stop or kill the command."""
    failures: list[BaseException] = []
    with stream:
        for raw in stream:
            if line := without_logins(visible(raw.rstrip())):
                lines.append(line)
                try:
                    log(line)
                except BaseException as failure:  # noqa: BLE001 - rich raises SystemExit if stderr has no reader
                    failures.append(failure)
    if failures:
        with suppress(BaseException):
            log(f"{len(failures)} lines could not be logged: {type(failures[-1]).__name__}: {failures[-1]}")


def _reason(lines: Sequence[str], code: int) -> str:
    for line in reversed(lines):
        if line.startswith("align: error: "):
            return line.removeprefix("align: error: ")
    tail = " | ".join(lines[-1:] if "Traceback (most recent call last):" in lines else lines[-TAIL_LINES:])
    if by := _SIGNALS.get(code - supervisor.SIGNALLED):  # its last lines are not the reason
        return f"ended by {by}" + (f"; its last lines: {tail}" if tail else "")
    return tail or f"exit code {code}"
