"""Locks of the kernel on files, which it frees when their holder ends, even by a crash. Only this module takes them.

Only the standard library is needed here, since `make clean` asks for locks where nothing is installed.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

#: Seconds between two tries of a process that waits for a while.
_LOOK_AGAIN_S = 0.02


def take(file: IO[Any], *, shared: bool = False, patience_s: float | None = 0.0) -> bool:
    """Takes the lock of an open file until the file is closed, or changes the lock's kind.

    Args:
        file: on NFS, a shared lock needs one that can be read, an exclusive one needs one that can be written.
        shared: whether others may hold it, too, if they also ask for it shared.
        patience_s: how long to wait for another process; None: until it has ended.

    Returns:
        False if another process still has it; then this one has no lock of either kind.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if patience_s is None:
        fcntl.flock(file, kind)
        return True
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_AGAIN_S)


@contextmanager
def tried(path: Path, *, shared: bool = False) -> Iterator[bool]:
    """Yields whether the lock of a file is ours, until the block ends; does not wait. The file is never removed."""
    with path.open("ab+") as file:
        yield take(file, shared=shared)


@contextmanager
def locked(path: Path, who: str, log: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a file, which is never removed; waits for another process. A signal ends the waiting.

    The file has the holder's name, `who`: a waiting process logs it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not take(file):
            file.seek(0)
            log(f"waiting for {file.read() or 'another run'}, which holds {path}")
            take(file, patience_s=None)
        file.seek(0)
        file.truncate()
        file.write(who)
        file.flush()
        yield
