"""libcurl's sockets and timers on epoll: idle connections cost nothing."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pycurl

_EVENTS = {
    pycurl.POLL_IN: select.EPOLLIN,
    pycurl.POLL_OUT: select.EPOLLOUT,
    pycurl.POLL_INOUT: select.EPOLLIN | select.EPOLLOUT,
}


class Transfers:
    """The transfers under way, each an easy handle of libcurl.

    Args:
        max_connections: to keep open, idle ones included.
    """

    def __init__(self, max_connections: int) -> None:
        self._epoll = select.epoll()
        self._registered: set[int] = set()
        self._timer: float | None = None
        self._multi: Any = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_connections)

    def add(self, easy: Any) -> None:
        """Starts a transfer; `wait` continues it."""
        self._multi.add_handle(easy)

    def remove(self, easy: Any) -> None:
        """Ends a transfer, finished or not."""
        self._multi.remove_handle(easy)

    def wait(self, timeout_s: float) -> Iterator[tuple[Any, int, str]]:
        """Continues the transfers, and waits at most `timeout_s` seconds for something to happen.

        Yields:
            Each finished transfer: its easy handle, libcurl's code (0: no error) and libcurl's message.
        """
        if self._timer is not None:
            timeout_s = min(timeout_s, self._timer - time.monotonic())
        action = self._multi.socket_action
        for fd, events in self._epoll.poll(max(0.0, timeout_s)):
            mask = pycurl.CSELECT_IN if events & (select.EPOLLIN | select.EPOLLHUP) else 0
            if events & select.EPOLLOUT:
                mask |= pycurl.CSELECT_OUT
            if events & select.EPOLLERR:
                mask |= pycurl.CSELECT_ERR
            action(fd, mask)
        if self._timer is not None and self._timer <= time.monotonic():
            self._timer = None
            action(pycurl.SOCKET_TIMEOUT, 0)
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            yield from ((easy, 0, "") for easy in good)
            yield from bad

    def close(self) -> None:
        """Closes all connections."""
        self._multi.close()
        self._epoll.close()

    def _watch(self, what: int, fd: int, multi: Any, data: Any) -> None:
        del multi, data
        if what == pycurl.POLL_REMOVE:
            self._registered.discard(fd)
            with suppress(OSError, ValueError):  # already closed
                self._epoll.unregister(fd)
        elif fd in self._registered:
            self._epoll.modify(fd, _EVENTS[what])
        else:
            self._registered.add(fd)
            self._epoll.register(fd, _EVENTS[what])

    def _set_timer(self, timeout_ms: int) -> None:
        self._timer = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000
