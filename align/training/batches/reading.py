"""Bytes of tars: positioned reads of local files, and range reads of an object store, with retries."""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections.abc import Callable
from functools import lru_cache

from align.display.console import say
from align.errors import DataError, ServiceError, StoppedWaitingError
from align.interfaces.store import Tars

#: Seconds that a run's read retries while the object store is unavailable.
STORE_PATIENCE_S = 300.0
#: Files kept open; of 180,000 shards not all can be.
_OPEN_FILES = 256
#: Seconds before a failed read of an object is retried: doubled each time, from the first number to the second.
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
#: Seconds between two lines about an unavailable store.
_SAY_EVERY_S = 30.0


def is_remote(uri: str) -> bool:
    """Whether a tar is read by range requests."""
    return "://" in uri


class TarBytes:
    """Reads tars, as files or from the object store; thread-safe. A read is retried for `patience_s`.

    Attributes:
        num_connections: how many threads may read from the store at a time.
        tell: takes lines about an unavailable store.
        stopped: asked while a read waits for the store; the read gives up when it returns True.
        closed: set when nobody needs the reads that wait for the store: they give up.
    """

    def __init__(self, store: Tars | None, patience_s: float) -> None:
        self._store, self._patience_s = store, patience_s
        self.num_connections = store.num_connections if store else 1
        self.tell: Callable[[str], None] = say
        self.stopped: Callable[[], bool] = lambda: False
        self.closed = threading.Event()
        self._opened = lru_cache(_OPEN_FILES)(_File)
        self._said = -math.inf

    def read(self, uri: str, begin: int, end: int) -> bytes:
        """Reads bytes `begin` to `end`; fewer if the tar ends before.

        Raises:
            DataError: no such file or object.
            ServiceError: the store was unavailable for longer than `patience_s`; StoppedWaitingError if this process
                was told to stop before.
        """
        if not is_remote(uri):
            file = self._opened(uri)  # held while it is read
            return os.pread(file.descriptor, end - begin, begin)
        assert self._store is not None, uri
        start, pause = time.monotonic(), _PAUSE_S
        while True:
            try:
                return self._store.read(uri, begin, end - begin)
            except ServiceError as error:
                spent = time.monotonic() - start
                # Random pauses, so that threads and ranks do not all hit a store that has just come up.
                pause_s = pause * random.uniform(0.5, 1.0)
                if spent + pause_s > self._patience_s:
                    raise ServiceError(f"{error} (tried for {spent:.0f} s)") from None
                if time.monotonic() - self._said > _SAY_EVERY_S:
                    self._said = time.monotonic()
                    self.tell(f"{error}; retrying for {self._patience_s - spent:.0f} s")
                until = time.monotonic() + pause_s
                while (left_s := until - time.monotonic()) > 0:
                    if self.closed.wait(min(left_s, 1.0)) or self.stopped():
                        raise StoppedWaitingError(str(error)) from None
                pause = min(2 * pause, _LONGEST_PAUSE_S)


class _File:
    """An open file, closed when its last user drops it: a thread may still read one that was evicted."""

    def __init__(self, path: str) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); run `align shard` again") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
