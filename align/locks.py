"""A lock file, so that one process works at a time. The kernel frees it when its holder ends, even by a crash."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

#: A process that may be told to end while it waits looks for both this often.
_LOOK_EVERY_S = 0.5


@contextmanager
def locked(path: Path, who: str, log: Callable[[str], None], check: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock; if another process holds it, logs one line and waits. A signal ends the waiting.

    Args:
        path: the lock file; created if missing, and never removed.
        who: the holder's name, written into the file: a waiting process logs it.
        log: for that line.
        check: called again and again while it waits; what it raises ends the waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        if not _take(file.fileno()):
            file.seek(0)
            log(f"waiting for {file.read() or 'another run'}, which holds {path}")
            if check is None:
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                while not _take(file.fileno()):
                    check()
                    time.sleep(_LOOK_EVERY_S)
        file.seek(0)
        file.truncate()
        file.write(who)
        file.flush()
        yield


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
