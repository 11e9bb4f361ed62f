"""Runs a command as a supervised child: its output goes to the log line by line, and no descendant outlives us."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from align.errors import AlignError, without_logins
from align.visible import visible
from flows import supervisor

#: An error quotes this many last lines if the command gave no reason itself.
TAIL_LINES = 5
#: An error quotes at most this many words of a command.
SHOWN_WORDS = 4


class CommandError(AlignError):
    """A child process failed; the message quotes its reason."""


def run_supervised(
    command: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Callable[[str], None]
) -> list[str]:
    """Runs a command to its end and returns its output, stdout and stderr together, as lines without logins.

    If this call is interrupted (a cancelled flow run, Ctrl-C), the command and its descendants are ended first, with
    time to write a checkpoint, and then the interruption is raised; see `flows.supervisor`.

    Args:
        command: program and arguments.
        cwd: its working directory.
        env: its whole environment.
        log: called with each line when it is printed.

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


def _pump(stream: TextIO, lines: list[str], log: Callable[[str], None]) -> None:
    with stream:
        for raw in stream:
            if line := without_logins(visible(raw.rstrip())):
                lines.append(line)
                log(line)


def _reason(lines: Sequence[str], code: int) -> str:
    for line in reversed(lines):
        if line.startswith("align: error: "):
            return line.removeprefix("align: error: ")
    tail = lines[-1:] if "Traceback (most recent call last):" in lines else lines[-TAIL_LINES:]
    return " | ".join(tail) or f"exit code {code}"
