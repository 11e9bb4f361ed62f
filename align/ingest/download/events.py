"""libcurl's sockets and timers on epoll: idle connections cost nothing."""

from __future__ import annotations

import select
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pycurl

_EVENTS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}
#: Transfers for each multi handle of libcurl, on average. It resolves ten names at a time: it has twenty threads for
#: that (CURLMOPT_RESOLVE_THREADS_MAX, which pycurl cannot set), and a name takes two.
_TRANSFERS_PER_MULTI: Final = 10


class Transfers:
    """The transfers under way, each an easy handle of libcurl.

    There are as many multi handles as it takes to resolve the names of all transfers at the same time, and a host
    always has the same one. With only one, ten names whose servers do not answer make all other hosts time out.

    Args:
        max_connections: transfers at a time; with the idle connections that are kept, there are about twice as many.
        max_per_host: transfers at a time to one host.
    """

    def __init__(self, max_connections: int, max_per_host: int) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, int] = {}  # socket -> which multi handle
        self._used: dict[Any, Any] = {}  # easy handle -> its multi handle
        num_multis = -(-max_connections // _TRANSFERS_PER_MULTI)
        self._timers: list[float | None] = [None] * num_multis
        self._multis: list[Any] = []
        for number in range(num_multis):
            multi = pycurl.CurlMulti()
            multi.setopt(pycurl.M_SOCKETFUNCTION, partial(self._watch, number))
            multi.setopt(pycurl.M_TIMERFUNCTION, partial(self._set_timer, number))
            multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
            multi.setopt(pycurl.M_MAXCONNECTS, min(max_connections, max(max_per_host, 2 * _TRANSFERS_PER_MULTI)))
            self._multis.append(multi)

    def add(self, easy: Any, origin: str) -> None:
        """Starts a transfer from that host; `wait` continues it."""
        multi = self._used[easy] = self._multis[zlib.crc32(origin.encode()) % len(self._multis)]
        multi.add_handle(easy)

    def remove(self, easy: Any) -> None:
        """Ends a transfer, finished or not."""
        self._used.pop(easy).remove_handle(easy)

    def wait(self, timeout_s: float) -> Iterator[tuple[Any, int, str]]:
        """Continues the transfers, and waits at most `timeout_s` seconds for something to happen.

        Yields:
            Each finished transfer: its easy handle, libcurl's code (0: no error) and libcurl's message.
        """
        if due := [timer for timer in self._timers if timer is not None]:
            timeout_s = min(timeout_s, min(due) - time.monotonic())
        continued = set()
        for fd, events in self._epoll.poll(max(0.0, timeout_s)):
            mask = pycurl.CSELECT_IN if events & (select.EPOLLIN | select.EPOLLHUP) else 0
            if events & select.EPOLLOUT:
                mask |= pycurl.CSELECT_OUT
            if events & select.EPOLLERR:
                mask |= pycurl.CSELECT_ERR
            number = self._watched.get(fd)
            if number is not None:  # an earlier event may have ended it
                continued.add(number)
                self._multis[number].socket_action(fd, mask)
        now = time.monotonic()
        for number, timer in enumerate(self._timers):
            if timer is not None and timer <= now:
                self._timers[number] = None
                continued.add(number)
                self._multis[number].socket_action(pycurl.SOCKET_TIMEOUT, 0)
        for number in sorted(continued):
            left = 1
            while left:
                left, good, bad = self._multis[number].info_read()
                yield from ((easy, 0, "") for easy in good)
                yield from bad

    def close(self) -> None:
        """Closes all connections."""
        for multi in self._multis:
            multi.close()
        self._epoll.close()

    def _watch(self, number: int, what: int, fd: int, multi: Any, data: Any) -> None:
        del multi, data
        if what == pycurl.POLL_REMOVE:
            self._watched.pop(fd, None)
            with suppress(OSError, ValueError):  # already closed
                self._epoll.unregister(fd)
        elif fd in self._watched:
            self._epoll.modify(fd, _EVENTS[what])
        else:
            self._watched[fd] = number
            self._epoll.register(fd, _EVENTS[what])

    def _set_timer(self, number: int, timeout_ms: int) -> None:
        self._timers[number] = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000
