"""Serves an application on granian: the same bounds for every server of ours.

A connection without a whole head is closed after ten seconds, and so is an idle one. Ports of ours are for this machine
and a team's network: on the open net a proxy in front bounds what one client may have.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import shutil
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path

from granian.constants import HTTPModes, Interfaces
from granian.errors import FatalError
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server

from align.errors import ServiceError
from align.web.guard import App

#: The only mode in which granian's limit of time holds for heads and for idle connections.
_MODE, _HEAD = HTTPModes.http1, HTTP1Settings(header_read_timeout=10_000, max_buffer_size=1 << 15)
_BACKLOG = 1024  # connections that wait to be taken
_OTHER_FILES = 256  # that the process has open, beside connections
_GRACE_S = 10.0  # for requests in flight at the end
_THREADS_END_S = 0.5  # granian's, which it does not wait for
_LOG_BYTES = 16 << 20


def serve(app: App, bind: str, port: int, *, max_connections: int, log: Path | None = None) -> None:
    """Serves an application until SIGINT or SIGTERM.

    Args:
        app: it.
        bind: the address to listen at.
        port: of it.
        max_connections: at a time; fewer where the process may open few files. More wait.
        log: the file that the output is appended to; it is kept short.

    Raises:
        ServiceError: the port cannot be used, or the application does not start.
    """

    async def until_signal() -> None:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        for one in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(one, ended.set)
        await serve_until(ended, app, bind, port, max_connections=max_connections, log=log)

    asyncio.run(until_signal())
    # Python ends a thread of granian's that still needs it while Python itself ends, and then the process is aborted.
    time.sleep(_THREADS_END_S)


async def serve_until(
    ended: asyncio.Event, app: App, bind: str, port: int, *, max_connections: int, log: Path | None = None
) -> None:
    """Serves until `ended` is set, then answers what is in flight. Arguments and errors as of `serve`."""
    require_free(bind, port)
    server = Server(
        app, bind, port, interface=Interfaces.ASGI, http=_MODE, http1_settings=_HEAD, backlog=_BACKLOG,
        backpressure=min(max_connections, max(_file_limit() - _OTHER_FILES, 1)), log_level=LogLevels.error,
    )  # fmt: skip
    serving, end = asyncio.create_task(server.serve()), asyncio.create_task(ended.wait())
    while not (serving.done() or end.done()):
        await asyncio.wait([serving, end], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        if log is not None:
            shorten(log)
    server.stop()  # type: ignore[no-untyped-call]  # granian
    try:
        await asyncio.wait_for(serving, _GRACE_S)
    except TimeoutError:  # what is still in flight is cut off
        return
    except FatalError as error:
        raise ServiceError(f"the server on port {port} does not start: {error}") from None


def require_free(bind: str, port: int) -> None:
    """Raises ServiceError if nobody can listen at an address. granian would share a port with another server."""
    with socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((bind, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "is taken by another program" if taken else f"cannot be used ({error.strerror})"
            raise ServiceError(f"port {port} of {bind} {why}: choose another with --port") from None


def _file_limit() -> int:
    """Raises the number of files that this process may open as far as possible, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems state a limit that they do not allow
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


def shorten(log: Path, most: int = _LOG_BYTES) -> None:
    """Copies a long log to `NAME.1` and empties it. Programs that append to it are not disturbed."""
    with suppress(OSError):
        if log.stat().st_size > most:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
