"""Worktrees whose run was killed: what their stages reported is kept, the rest is removed.

A run holds the lock .align/locks/KEY as long as its worktree .align/worktrees/KEY exists, and the kernel frees the lock
when its process ends. So a worktree whose lock is free is a dead run's. Processes that the run had started are told to
stop then (`flows.tasks.supervisor`): a trainer saves its checkpoint through the worktree, so we wait for it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from align.config.params import PARAMS_FILE
from align.durable.locks import tried
from align.errors import DataError, FormatError, LockedError
from align.pipeline import run_records
from align.pipeline.run_records import Liveness, RunRecord
from align.services.git import git
from flows.checkout.failed_runs import folder_for, keep
from flows.tasks.run_context import STATE, log_file
from flows.tasks.supervisor import GRACE_S

#: Tries of a git command that may meet another one.
_NUM_ATTEMPTS = 5
_WHY = "its process ended without recording its end"


def clear(root: Path, path: Path, log: Callable[[str], None]) -> None:
    """Clears the place of a worktree; the caller holds its lock.

    Raises:
        LockedError: a process that the dead run started does not end.
    """
    _wait_until_left(path)
    if (path / PARAMS_FILE).is_file() and log_file(path).is_file():  # else it never began, or its evidence is kept
        record = _record_of(root, path)
        name = record.name if record else "killed"
        run = {"name": name, "state": "killed", "why": _WHY, "flow_run": record.flow_run if record else ""}
        keep(path, folder_for(root, name, path.name), lambda line: log(f"worktree {path.name}: {line}"), run)
    remove(root, path)


def remove(root: Path, path: Path) -> None:
    """Removes a run's worktree, and git's record of it, even one that a killed `git worktree add` left half made."""
    shutil.rmtree(path, ignore_errors=True)
    with suppress(DataError):  # git knows no such worktree. Forced twice, since a half made one is locked
        git(root, "worktree", "remove", "--force", "--force", str(path))


def sweep(root: Path, log: Callable[[str], None]) -> None:
    """Clears the place of every worktree whose run is dead."""
    folder = (root / STATE / "worktrees").resolve()
    if not folder.is_dir():
        return
    listed = _listed(root).splitlines()
    known = {Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")}
    paths = {path for path in known if path.parent == folder} | set(folder.glob("*"))
    # of live runs, and of runs of other machines, whose locks may not be seen here
    taken = {Path(record.worktree).name for kind, record in _records(root) if kind in ("live", "elsewhere")}
    for path in sorted(path for path in paths if path.name not in taken):
        lock = root / STATE / "locks" / path.name
        lock.parent.mkdir(parents=True, exist_ok=True)
        with tried(lock) as free:
            if not free:  # a run works there
                continue
            try:
                clear(root, path, log)
            except LockedError as error:
                log(f"{error}: left for the next time")


def _listed(root: Path) -> str:
    """The worktrees that git knows. git fails while another process makes or removes one."""
    for _ in range(_NUM_ATTEMPTS - 1):
        with suppress(DataError):
            return git(root, "worktree", "list", "--porcelain")
    return git(root, "worktree", "list", "--porcelain")  # this one says what is wrong


def _wait_until_left(path: Path) -> None:
    deadline = time.monotonic() + GRACE_S + 5
    while path.exists() and (pids := [process.pid for process in psutil.process_iter() if _works_in(process, path)]):
        if time.monotonic() > deadline:
            raise LockedError(f"{path}: process {pids[0]} of a killed run still works there")
        time.sleep(0.2)


def _works_in(process: psutil.Process, path: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(path)
    except (psutil.Error, OSError):  # another user's, or it has ended
        return False


def _record_of(root: Path, path: Path) -> RunRecord | None:
    """The record of the run that worked there; None if it is lost."""
    mine = [record for kind, record in _records(root) if kind == "dead" and Path(record.worktree).name == path.name]
    return mine[-1] if mine else None


def _records(root: Path) -> list[tuple[Liveness, RunRecord]]:
    found = []
    for lock in run_records.locks(root):
        try:
            found.append(run_records.look(lock))
        except FormatError:  # `flows.reconcile` says so
            continue
    return [each for each in found if each]
