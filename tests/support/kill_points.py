"""Ends a command before each change that it makes to files or to a database, and runs it again.

python -m tests.support.kill_points NUMBER COUNT MODULE ARGUMENTS

runs a module in the working directory, which has everything that it changes. It is killed before its change with this
number, of 1 and more; with 0 it works to its end, and how many there were is written to the file COUNT.
"""

import atexit
import itertools
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.durable.files import is_temporary
from tests.support import ROOT
from tests.support.warm import commands

#: Of Python's audit events; what a library in C writes has none, but the renames and commands around it have.
_CHANGES = frozenset({
    "os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.utime",
    "subprocess.Popen",
})  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
#: Kills of one command, evenly spread over its changes; 0: before each of them; 70-80: before these.
CHOSEN = os.environ.get("KILL_POINTS", "12")


def main():
    """See the module."""
    at, count, module, *words = sys.argv[1:]
    numbers, here = itertools.count(1), str(Path.cwd().parent)
    last = [0]

    def change():
        last[0] = next(numbers)
        if last[0] == int(at):
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event == "open":
            if not isinstance(arguments[2], int) or not arguments[2] & _WRITES:
                return
        elif event not in _CHANGES:
            return
        place = arguments[0]
        if isinstance(place, int):  # an open file
            return
        path = os.fsdecode(place)
        if event == "subprocess.Popen" or not path.startswith("/") or path.startswith(here):
            change()

    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    event.listen(Engine, "commit", lambda connection: change())
    if at == "0":
        atexit.register(lambda: Path(count).write_text(str(last[0])))
    sys.addaudithook(hook)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@dataclass(frozen=True)
class Case:
    """A command, and what it makes.

    Attributes:
        start: a folder `project` with what the command needs, and maybe others beside it.
        words: of the command: a module and its arguments. It runs in `project`.
        state: what it has made, in `project`, by name: that of a whole run, once a killed one was run again.
        whole_or_nothing: whether a killed run has made each of them, or left it as it was.
        refused: whether the command is refused once there is nothing left to do, as a second rollback is.
        env: variables of the command.
    """

    start: Path
    words: Sequence[str]
    state: Callable[[Path], dict[str, Any]]
    whole_or_nothing: bool = True
    refused: bool = False
    env: Callable[[Path], Mapping[str, str]] = field(default=lambda _: {})

    def run(self, root, at):
        """Runs the command, which dies before change `at`."""
        count = root.parent.with_suffix(".number")
        program = [commands() / "python", "-m", "tests.support.kill_points", str(at), str(count)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **self.env(root)}
        return subprocess.run([*program, *self.words], cwd=root, env=env, capture_output=True, text=True, check=False)


def survives(case, work):
    """Kills a command at its changes and runs it again each time; how many kills, and how many changes a whole run
    makes.
    """
    root = work / "here/project"

    def again():
        shutil.rmtree(root.parent, ignore_errors=True)
        shutil.copytree(case.start, root.parent, symlinks=True)

    again()
    before = case.state(root)
    done = case.run(root, 0)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, number = case.state(root), int((work / "here.number").read_text())
    assert whole != before and number > 0
    kills = _chosen(number)
    for at in kills:
        again()
        killed = case.run(root, at)
        assert killed.returncode == -signal.SIGKILL, f"{at}: {killed.returncode} {killed.stderr[-3000:]}"
        left = case.state(root)
        if case.whole_or_nothing:
            for name, made in left.items():
                assert made in (before.get(name), whole[name]), f"{name}, killed before change {at} of {number}: {made}"
        done = case.run(root, 0)
        now = case.state(root)
        assert done.returncode == 0 or case.refused, (
            f"after a kill before change {at} of {number}: {_differ(now, whole)} {done.stderr}"
        )
        assert now == whole, f"after a kill before change {at} of {number}: {_differ(now, whole)}"
        parts = [path for path in root.parent.rglob("*") if is_temporary(path) or path.name == ".work.json"]
        assert not parts, f"after a kill before change {at} of {number}: {parts}"
    return len(kills), number


def _chosen(number):
    first, _, last = CHOSEN.partition("-")
    if last:
        return range(int(first), min(int(last), number) + 1)
    most = int(CHOSEN)
    every = not most or number <= most
    return range(1, number + 1) if every else [1 + at * (number - 1) // (most - 1) for at in range(most)]


def _differ(now, whole):
    """What is another in nested mappings: (now, as it should be)."""
    if isinstance(now, dict) and isinstance(whole, dict):
        names = [name for name in {**whole, **now} if now.get(name) != whole.get(name)]
        return {name: _differ(now.get(name), whole.get(name)) for name in names}
    return now, whole


if __name__ == "__main__":
    main()
