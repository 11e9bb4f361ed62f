"""Worktrees whose run was killed: what their stages reported is kept, the rest is removed.

A run holds the lock .align/locks/KEY as long as its worktree .align/worktrees/KEY exists, and the kernel frees the lock
when its process ends. So a worktree whose lock is free is a dead run's.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

from align import run_records
from align.config.params import PARAMS_FILE
from align.errors import FormatError
from align.run_records import RunRecord
from flows.failed_runs import folder_for, keep
from flows.git_repository import git
from flows.run_context import STATE, log_file
from flows.worktree import remove

_WHY = "its process ended without a word"


def clear(root: Path, path: Path, log: Callable[[str], None]) -> None:
    """Clears the place of a worktree; the caller holds its lock."""
    if (path / PARAMS_FILE).is_file() and log_file(path).is_file():  # else it had not begun, or its evidence is kept
        record = _record_of(root, path)
        name = record.name if record else "killed"
        run = {"name": name, "state": "killed", "why": _WHY, "flow_run": record.flow_run if record else ""}
        keep(path, folder_for(root, name, path.name), lambda line: log(f"worktree {path.name}: {line}"), run)
    remove(root, path)


def sweep(root: Path, log: Callable[[str], None]) -> None:
    """Clears the place of every worktree whose run is dead."""
    folder = (root / STATE / "worktrees").resolve()
    if not folder.is_dir():
        return
    listed = git(root, "worktree", "list", "--porcelain").splitlines()
    known = {Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")}
    paths = {path for path in known if path.parent == folder} | set(folder.glob("*"))
    for path in sorted(paths):
        lock = root / STATE / "locks" / path.name
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a run works there
                continue
            clear(root, path, log)


def _record_of(root: Path, path: Path) -> RunRecord | None:
    """The record of the run that worked there; None where it is lost."""
    for lock in reversed(run_records.locks(root)):
        try:
            found = run_records.look(lock)
        except FormatError:
            continue
        if found and found[0] == "dead" and found[1].worktree and Path(found[1].worktree).name == path.name:
            return found[1]
    return None
