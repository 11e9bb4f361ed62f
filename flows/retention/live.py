"""Who works in a checkout now: nothing that they may need is removed.

A run holds a shared lock while it works. `align gc` removes objects of DVC's cache only while it has that lock for
itself, so a run that starts meanwhile waits: any stage of a run may come from the cache. Commands that people start by
hand are found by the locks that they hold: DVC's, and those of training runs.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.run_context import STATE

LOCKS = STATE / "locks"
#: The lock that runs share, and the one that lets one `align gc` work at a time.
SHARED, GC = "retention", "gc"


@dataclass(frozen=True)
class Worker:
    """Somebody at work.

    Attributes:
        who: for people.
        since: seconds since 1970, no later than its start.
    """

    who: str
    since: float


@contextmanager
def needs_everything(root: Path, log: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, `align gc` removes no object that a stage may come from. Any number of runs may be inside.

    Args:
        root: the user's checkout.
        log: for one line, if a removal is under way; then this waits for its end.
    """
    path = root / LOCKS / SHARED
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"waiting for `align gc`, which holds {path}")
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def nobody_else(root: Path) -> Iterator[bool]:
    """Yields whether no run is inside `needs_everything`; if so, none enters until the block ends."""
    path = root / LOCKS / SHARED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with free(path) as alone:
        yield alone


@contextmanager
def free(lock: Path) -> Iterator[bool]:
    """Yields whether nobody holds the lock file, which is held while the block runs; a missing one is free."""
    if not lock.is_file():
        yield True
        return
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def workers(root: Path, checkpoints: Path, worktrees: list[Path]) -> list[Worker]:
    """Everybody at work in the checkout, its worktrees, or one of its training runs.

    Args:
        root: the checkout.
        checkpoints: the folder of the training runs' folders.
        worktrees: all of the repository, the checkout among them.
    """
    locks = [path for path in sorted((root / LOCKS).glob("*")) if path.name not in (SHARED, GC)]
    found = []
    for lock in (*locks, *sorted(checkpoints.glob("*/lock"))):
        with free(lock) as is_free:
            if not is_free:
                who = lock.read_text("utf-8", "replace") or f"the training in {lock.parent}"
                found.append(Worker(who, lock.stat().st_mtime))
    for folder in worktrees:
        found += _at_work_by_dvc(folder / ".dvc" / "tmp" / "rwlock")
    return found


def _at_work_by_dvc(file: Path) -> Iterator[Worker]:
    """The DVC commands that a list of DVC names and that still run: {path: {"read": [{pid, cmd}], "write": {...}}}."""
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        entries = [dict(entry) for entry in dict(json.loads(data)).values()]
        users = [user for entry in entries for user in (*entry.get("read", ()), *filter(None, [entry.get("write")]))]
        named = [(int(user["pid"]), str(user["cmd"])) for user in users]
    except (ValueError, TypeError, KeyError):  # perhaps it is being written
        yield Worker(f"perhaps DVC: {file} cannot be read", file.stat().st_mtime)
        return
    for pid, command in named:
        try:
            process = psutil.Process(pid)
            if process.status() != psutil.STATUS_ZOMBIE:
                yield Worker(f"`{command}`", process.create_time())
        except (psutil.Error, ValueError):
            continue
