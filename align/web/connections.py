"""How many connections a server of ours keeps open, and for how long; the same for all of them.

uvicorn itself has no bound for either: a client that opens connections and never ends the head of a request takes all
files that the process may open. Here a connection that waits (for a head, or for its client to read) is closed after a
while, and gives its place to a new one when there are too many. One whose request is being answered keeps its place.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import re
import resource
import shutil
import socket
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from align.display.console import say
from align.errors import ServiceError
from align.web.guard import App

_BACKLOG = 1024  # connections that wait to be taken
_TAKEN_AT_ONCE = 16  # of them, before what the others sent is read
_OTHER_FILES = 256
_HEAD_BYTES = 1 << 15
_HEADERS, _BLANKS = 100, 100  # of a head, and one after the other in it
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_NO_CHUNK = re.compile(rb"(?:0\r\n)?(?:\r\n|\r?\Z)|0\r?\Z")  # or its beginning
_LOG_BYTES = 16 << 20
_TICKS_PER_S = 10  # of uvicorn's main loop
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SAID_EACH_S = 60.0


@dataclass(frozen=True)
class Bounds:
    """Of a server's connections.

    Attributes:
        total: at a time.
        of_address: at a time from one address; None: no such bound, as behind a proxy, where all clients have one
            address.
        wait_s: for a request's head, or for a client that does not read its answer.
    """

    total: int
    of_address: int | None
    wait_s: float


class _Open:
    """The open connections, all (None) and by address, in the order in which they began to wait."""

    def __init__(self) -> None:
        self.groups: defaultdict[str | None, dict[_Connection, None]] = defaultdict(dict)

    def put_last(self, one: _Connection) -> None:
        for name in (None, one.address):
            self.groups[name].pop(one, None)
            self.groups[name][one] = None

    def remove(self, one: _Connection) -> None:
        for name in (None, one.address):
            self.groups[name].pop(one, None)
            if not self.groups[name]:
                del self.groups[name]


class _Config(uvicorn.Config):
    bounds: Bounds
    open: _Open


class _Refused(Exception):
    """What h11 would take long to parse."""


class _Parser(h11.Connection):
    """Looks at a head before h11 parses it, which takes the square of the blanks in a line: 25 s for 32 kB.

    A body in chunks must be empty, as `requests` sends an empty file: h11 bounds neither chunks nor trailers, and one
    byte costs it as much as 64 kB.
    """

    _in_chunks = False

    def next_event(self) -> Any:
        """As h11's. Raises _Refused, too."""
        if self.their_state is h11.IDLE:
            head = _END_OF_HEAD.split(self.trailing_data[0], 1)[0].lower()
            self._in_chunks = b"\ntransfer-encoding" in head
            if len(head) > _HEAD_BYTES or head.count(b"\n") > _HEADERS or b" " * _BLANKS in head.replace(b"\t", b" "):
                raise _Refused(f"a head has at most {_HEADERS} headers and {_HEAD_BYTES:,} bytes")
        elif self._in_chunks and self.their_state is h11.SEND_BODY and not _NO_CHUNK.match(self.trailing_data[0]):
            raise _Refused("send the body with its length (Content-Length), not in chunks")
        return super().next_event()


class _Connection(H11Protocol):
    """One connection."""

    config: _Config
    _upgraded = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Parser(h11.SERVER, _HEAD_BYTES)

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except _Refused as refused:
            self.send_400_response(str(refused))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._unsent = 0
        self._waits()
        bounds, groups = self.config.bounds, self.config.open.groups
        for name, most in ((self.address, bounds.of_address), (None, bounds.total)):
            if most is not None and len(groups[name]) > most:
                next((one for one in groups[name] if one.is_idle), self).drop()
                return

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.open.remove(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._waits()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._since = self.loop.time()
        super().pause_writing()

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._upgraded = True
        super().handle_websocket_upgrade(event)

    @property
    def is_idle(self) -> bool:
        """Whether none of its requests is being answered."""
        return not self._upgraded and (self.cycle is None or self.cycle.response_complete)

    def drop(self) -> None:
        """Closes it, even if something is still to be sent."""
        self.config.open.remove(self)
        self.transport.abort()

    def drop_if_late(self, now: float) -> None:
        """Drops it if it has waited for too long, and forgets a WebSocket that was closed."""
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:  # the client reads
            self._since = now
        self._unsent = unsent
        if self._upgraded and self.transport.is_closing():
            self.config.open.remove(self)
        elif (self.is_idle or self.flow.write_paused) and now - self._since > self.config.bounds.wait_s:
            self.drop()

    def _waits(self) -> None:
        self._since = self.loop.time()
        self.config.open.put_last(self)


class _Server(uvicorn.Server):
    def __init__(self, config: _Config, log: Path | None) -> None:
        super().__init__(config)
        self._open, self._log, self._said = config.open, log, -_SAID_EACH_S

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._failed)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_BACKLOG)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_S == 0:
            now = asyncio.get_running_loop().time()
            for one in list(self._open.groups[None]):
                one.drop_if_late(now)
            if self._log is not None:
                shorten(self._log)
        return await super().on_tick(counter)

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            loop.default_exception_handler(context)
        elif loop.time() - self._said >= _SAID_EACH_S:  # asyncio tries again every second, and says each time
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
        **options,
    )  # fmt: skip
    total = min(bounds.total, max(_file_limit() - _OTHER_FILES, 1))
    config.bounds, config.open = Bounds(total, bounds.of_address, bounds.wait_s), _Open()
    return _Server(config, log)


def _file_limit() -> int:
    """Raises the number of files that this process may open as far as possible, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems state a limit that they do not allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def listening(bind: str, port: int) -> socket.socket:
    """A socket that listens at the address. Raises ServiceError if it cannot."""
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


def keep_for_good() -> None:
    """Python's collector no longer looks at what there is now: modules, an application, a model.

    Looking at all of it took a fifth of a CPU second, in which nobody gets an answer, once in some thousand
    connections.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def shorten(log: Path, most: int = _LOG_BYTES) -> None:
    """Copies a long log to `NAME.1` and empties it. Programs that append to it are not disturbed."""
    with suppress(OSError):
        if log.stat().st_size > most:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
