"""How many connections a server of ours keeps open, and for how long; the same for all of them.

uvicorn itself has no bound for either: whoever opens connections and never ends the head of a request takes all files
that the process may have. Here a connection that waits (for a head, or for its client to read) is closed after a while,
and gives its place to a new one when there are too many. One whose request is being answered keeps its place.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from align.console import say
from align.errors import ServiceError
from align.guard import App

_BACKLOG = 1024  # connections that wait to be taken
_TAKEN_AT_ONCE = 128  # of them, before the others are served
_HEAD_BYTES = 1 << 15
_LOG_BYTES = 16 << 20
_TICKS_PER_S = 10  # of uvicorn's main loop
_ACCEPT_SAID_S = 60.0


@dataclass(frozen=True)
class Bounds:
    """Of a server's connections.

    Attributes:
        total: at a time.
        of_address: at a time of one client; None: no bound of its own, as behind a proxy, where all have one address.
        wait_s: for a request's head, or for a client that reads nothing of its answer.
    """

    total: int
    of_address: int | None
    wait_s: float


class _Config(uvicorn.Config):
    bounds: Bounds


class _Connection(H11Protocol):
    """One connection. `config` is a `_Config`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._since, self._unsent = self.loop.time(), 0
        super().connection_made(transport)
        self._make_room()

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._since = self.loop.time()
        super().pause_writing()

    @property
    def is_waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def drop(self) -> None:
        """Closes it, whatever is still to be sent."""
        self.transport.abort()

    def drop_if_late(self, now: float) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:  # the client reads
            self._since = now
        self._unsent = unsent
        if self.is_waiting and now - self._since > self.config.bounds.wait_s:  # type: ignore[attr-defined]
            self.drop()

    def _make_room(self) -> None:
        bounds: Bounds = self.config.bounds  # type: ignore[attr-defined]
        everyone: list[Any] = [one for one in self.connections if not one.transport.is_closing()]
        mine = [one for one in everyone if one.client and self.client and one.client[0] == self.client[0]]
        if bounds.of_address is not None and len(mine) > bounds.of_address:
            self._oldest(mine).drop()
        elif len(everyone) > bounds.total:
            self._oldest(everyone).drop()

    def _oldest(self, some: Iterable[Any]) -> _Connection:
        """The one that waits for the longest time; this one if none does."""
        waiting = (one for one in some if isinstance(one, _Connection) and one.is_waiting)
        return min(waiting, key=lambda one: one._since, default=self)


class _Server(uvicorn.Server):
    def __init__(self, config: _Config, log: Path | None) -> None:
        super().__init__(config)
        self._log, self._said = log, -_ACCEPT_SAID_S

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._failed)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_S == 0:
            now = asyncio.get_running_loop().time()
            for one in list(self.server_state.connections):
                if isinstance(one, _Connection):
                    one.drop_if_late(now)
            if self._log is not None:
                shorten(self._log)
        return await super().on_tick(counter)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOBUFS,
            errno.ENOMEM,
        ):
            loop.default_exception_handler(context)
        elif loop.time() - self._said >= _ACCEPT_SAID_S:  # asyncio tries again every second, and says each time
            self._said = loop.time()
            say(f"server: new connections wait: {error.strerror}")


def server(app: App, bounds: Bounds, *, log: Path | None = None, **options: Any) -> uvicorn.Server:
    """A server of an application.

    Args:
        app: it.
        bounds: of its connections; fewer where the process may open few files.
        log: the file that its output is appended to; it is kept short.
        options: of `uvicorn.Config`.
    """
    config = _Config(
        app, http=_Connection, log_level="warning", access_log=False, proxy_headers=False, backlog=_TAKEN_AT_ONCE,
        h11_max_incomplete_event_size=_HEAD_BYTES, **options,
    )  # fmt: skip
    total = min(bounds.total, max(_file_limit() - 2 * _TAKEN_AT_ONCE, 1))
    config.bounds = Bounds(total, bounds.of_address, bounds.wait_s)
    return _Server(config, log)


def _file_limit() -> int:
    """The number of files that this process may open, once it is as high as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems name a limit that they do not allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def listening(bind: str, port: int) -> socket.socket:
    """A socket at the address. Raises ServiceError where that is impossible."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((bind, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise ServiceError(f"port {port} of {bind} {why}: choose another with --port") from None
    return made


def shorten(log: Path, most: int = _LOG_BYTES) -> None:
    """Keeps what a long log has as `NAME.1`, and empties it; whoever appends to it goes on doing so."""
    with suppress(OSError):
        if log.stat().st_size > most:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
