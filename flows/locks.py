"""One at a time: a lock file that the kernel frees when its holder ends, however it ends."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, who: str, log: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock; waits for it, and says so, while another process does.

    Args:
        path: the lock file; created where missing, and left.
        who: written into the file, so that the one who waits can say for whom.
        log: for the line that says so.
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
