"""A file on a server, read by ranges and ahead."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, cast

from align.errors import DataError

#: A stream's first request has this many bytes, and each further one twice as many, up to the second number: a jump to
#: one picture costs little, and a whole archive needs few requests.
_FIRST_BYTES, _MOST_BYTES = 1 << 16, 1 << 23


def range_stream(uri: str, num_bytes: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """A file on a server as a seekable stream.

    Args:
        uri: what errors call it.
        num_bytes: its size.
        fetch: (offset, size) -> these bytes; one thread beside the reader's calls it, too.

    Raises, at each read:
        What `fetch` raises; DataError where the file ends early.
    """
    return cast(BinaryIO, io.BufferedReader(_Ranges(uri, num_bytes, fetch), 1 << 16))


class _Ranges(io.RawIOBase):
    """Memory: two windows of at most 8 MiB, one of them read ahead."""

    def __init__(self, uri: str, num_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._uri, self._num_bytes, self._fetch_range = uri, num_bytes, fetch
        self._at = self._start = 0
        self._window = b""
        self._length = _FIRST_BYTES
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._num_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek position {origin + offset}")
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # typeshed requires a Buffer, which 3.11 cannot name
        if self._at >= self._num_bytes or not view:
            return 0
        if not self._start <= self._at < self._start + len(self._window):
            self._load()
        begin = self._at - self._start
        data = self._window[begin : begin + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _load(self) -> None:
        """Loads the window at the current position; a small step forward continues the read, a large one is a jump."""
        end = self._start + len(self._window)
        reads_on = bool(self._window) and end <= self._at < end + _FIRST_BYTES
        self._length = min(2 * self._length, _MOST_BYTES) if reads_on else _FIRST_BYTES
        start, window = self._at, b""
        if self._ahead is not None:
            ahead_start, future = self._ahead
            self._ahead = None
            if reads_on and self._at >= ahead_start:
                start, window = ahead_start, future.result()
        if not start <= self._at < start + len(window):
            start, window = self._at, self._fetch(self._at, self._length)
            if not window:
                raise DataError(f"{self._uri}: it ends before its size of {self._num_bytes:,} bytes; run again")
        self._start, self._window = start, window
        after = start + len(window)
        if reads_on and after < self._num_bytes:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
            self._ahead = after, self._pool.submit(self._fetch, after, self._length)

    def _fetch(self, start: int, length: int) -> bytes:
        return self._fetch_range(start, min(length, self._num_bytes - start))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._ahead, self._window = None, b""
        super().close()
