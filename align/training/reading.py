"""Bytes of tars: positioned reads of local files, range reads of an object store that may be away for a while."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from align.console import say
from align.errors import DataError, ServiceError
from align.protocols.store import Tars

#: Files that stay open; at 180,000 shards not all can.
_OPEN_FILES = 256
#: Samples of an object are read together where no more than this lies between them: so long does a request take.
_GAP_BYTES = 1 << 16
#: And at most so much at a time.
_MOST_BYTES = 1 << 23
#: Seconds before a read of an object is tried again: doubled each time, from the first number to the second.
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
#: Waiting for a store is said so often.
_SAY_EVERY_S = 30.0


class Place(NamedTuple):
    """Where one sample lies: in which tar, and in bytes within it."""

    sample: int
    shard: int
    jpg: int
    jpg_bytes: int
    json: int
    json_bytes: int

    def span(self) -> Span:
        """The one read that brings in both of its files, which are neighbours."""
        end = max(self.jpg + self.jpg_bytes, self.json + self.json_bytes)
        return Span(self.shard, min(self.jpg, self.json), end, [self.sample])


@dataclass
class Span:
    """One read, for one or more samples.

    Attributes:
        shard: number of the tar.
        begin, end: in bytes.
        samples: numbers of those whose jpg and json lie in it.
    """

    shard: int
    begin: int
    end: int
    samples: list[int]


def is_remote(uri: str) -> bool:
    """Whether a tar is read by range requests."""
    return "://" in uri


def joined(places: list[Place]) -> list[Span]:
    """The reads that bring in all these: one for those that are neighbours or nearly so."""
    found: list[Span] = []
    for span in sorted((place.span() for place in places), key=lambda span: (span.shard, span.begin)):
        last = found[-1] if found else None
        if (
            last is not None
            and last.shard == span.shard
            and span.begin <= last.end + _GAP_BYTES
            and span.end - last.begin <= _MOST_BYTES
        ):
            last.end = max(last.end, span.end)
            last.samples += span.samples
        else:
            found.append(span)
    return found


class Bytes:
    """Reads tars; thread-safe.

    Args:
        tars: the object store; None where all tars are files.
        patience_s: how long a read goes on asking a store that is away; 0 asks once.
    """

    def __init__(self, tars: Tars | None, patience_s: float) -> None:
        self._tars, self._patience_s = tars, patience_s
        self.num_connections = tars.num_connections if tars else 1
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._said = 0.0
        self.stopped: Callable[[], bool] = lambda: False  # a read that waits for the store gives up then

    def read(self, uri: str, begin: int, end: int) -> bytes:
        """Bytes `begin` to `end`; fewer where the tar ends before.

        Raises:
            DataError: no such file or object.
            ServiceError: the store was away for longer than `patience_s`, or until the process was to stop.
        """
        if not is_remote(uri):
            return os.pread(self._file(uri).descriptor, end - begin, begin)
        return self._read_object(uri, begin, end - begin)

    def close(self) -> None:
        """Reads that wait for a store give up."""
        self._closed.set()

    def reopen(self) -> None:
        """After `close`, for another pass."""
        self._closed.clear()

    def _read_object(self, uri: str, begin: int, size: int) -> bytes:
        assert self._tars is not None, uri
        start, pause = time.monotonic(), _PAUSE_S
        while True:
            try:
                return self._tars.read(uri, begin, size)
            except ServiceError as error:
                spent = time.monotonic() - start
                # Threads and ranks come back at different times: a store that has just come up is not run over.
                pause_s = pause * random.uniform(0.5, 1.0)
                if spent + pause_s > self._patience_s:
                    raise ServiceError(f"{error} (tried for {spent:.0f} s)") from None
                self._say(f"{error}; trying on for {self._patience_s - spent:.0f} s")
                until = time.monotonic() + pause_s
                while (left_s := until - time.monotonic()) > 0:
                    if self._closed.wait(min(left_s, 1.0)) or self.stopped():
                        raise
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _say(self, line: str) -> None:
        with self._lock:
            now = time.monotonic()
            speak = not self._said or now - self._said > _SAY_EVERY_S
            self._said = now if speak else self._said
        if speak:
            say(line)

    def _file(self, path: str) -> _File:
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _File(path)
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(path)
            return file


class _File:
    """An open file, closed when nobody uses it any longer: another thread may be reading it when it falls out."""

    def __init__(self, path: str) -> None:
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); run `align shard` again") from None

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
