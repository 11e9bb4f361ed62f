"""A lock file, so that one process works at a time. The kernel frees it when its holder ends, even by a crash."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, who: str, log: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock; if another process holds it, logs one line and waits.

    Args:
        path: the lock file; created if missing, and never removed.
        who: the holder's name, written into the file: a waiting process logs it.
        log: for that line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log(f"waiting for {file.read() or 'another run'}, which holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        file.truncate()
        file.write(who)
        file.flush()
        yield
