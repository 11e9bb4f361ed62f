"""Keeps a run and its stages going while Prefect's server, or the worker that started it, is unavailable.

Prefect's clients repeat a request for a minute and then fail the run; its log then loses the lines of that minute. A
run also writes to a pipe that ends with its worker: the next line that it prints would end it.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.settings import PREFECT_API_URL, get_current_settings

from align.display.console import say
from flows.tasks.run_context import STATE

#: How long a run waits for its server: over a night. Its stages' results are in DVC's cache meanwhile.
PATIENCE_S = 24 * 3600.0
RETRY_EVERY_S = 2.0
#: Answers of a server that starts or ends, or of a proxy in front of one that does not run. The first may also be a
#: defect of the server, so repeating a request may only help for a short while.
_NOT_NOW = {500: 60.0, 502: PATIENCE_S, 503: PATIENCE_S, 504: PATIENCE_S}

_Answer = Coroutine[Any, Any, httpx.Response]


class _Outage:
    """The outage that this process sees, if any; logged once when it begins and once when it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: float | None = None
        self.ending = threading.Event()

    def wait_on(self, error: httpx.TransportError | httpx.HTTPStatusError, since: float) -> bool:
        """Whether to repeat a request that failed like this, and that was first made at `since`."""
        answer = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
        patience_s = _NOT_NOW.get(answer, 0.0) if answer else PATIENCE_S
        if self.ending.is_set() or not patience_s:
            return False
        with self._lock:
            if self._began is None:
                self._began = time.monotonic()
                say(f"Prefect's server does not answer ({answer or type(error).__name__}); waiting for it")
            return time.monotonic() - since < patience_s

    def answered(self) -> None:
        with self._lock:
            if self._began is not None:
                say(f"Prefect's server answers again, after {time.monotonic() - self._began:.0f} s")
                self._began = None


_outage = _Outage()


def wait_out_outages() -> None:
    """Makes all of Prefect's clients in this process wait for a server that does not answer, log lines included.

    Not for the temporary server of a run that has no other: it ends with the run, and nobody starts it again.
    """
    if not PREFECT_API_URL.value() or hasattr(PrefectHttpxSyncClient.send, "__wrapped__"):
        return
    # assigned, since Prefect makes its clients itself and takes no other class
    PrefectHttpxSyncClient.send = _patient(PrefectHttpxSyncClient.send)  # type: ignore[method-assign]
    PrefectHttpxAsyncClient.send = _patient_async(PrefectHttpxAsyncClient.send)  # type: ignore[method-assign]


def end_without_waiting() -> None:
    """For a run that has to end: it no longer waits for a server, nor asks one again."""
    _outage.ending.set()
    get_current_settings().client.max_retries = 0


def keep_output(root: Path) -> None:
    """Lets this process, if a worker on this machine started it, write into the worker's log itself."""
    try:
        parent = psutil.Process().parent()
        if parent is None or "worker" not in parent.cmdline():
            return
    except psutil.Error:
        return
    file = root / STATE / "logs" / "worker.log"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:  # a full disk
        log = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            os.dup2(log, stream.fileno())
    os.close(log)


def _patient(send: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    @wraps(send)
    def wait_and_send(client: Any, request: httpx.Request, *args: Any, **kwargs: Any) -> httpx.Response:
        since = time.monotonic()
        while True:
            try:
                answer = send(client, request, *args, **kwargs)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not _outage.wait_on(error, since):
                    raise
            else:
                _outage.answered()
                return answer
            _outage.ending.wait(RETRY_EVERY_S)

    return wait_and_send


def _patient_async(send: Callable[..., _Answer]) -> Callable[..., _Answer]:
    @wraps(send)
    async def wait_and_send(client: Any, request: httpx.Request, *args: Any, **kwargs: Any) -> httpx.Response:
        since = time.monotonic()
        while True:
            try:
                answer = await send(client, request, *args, **kwargs)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not _outage.wait_on(error, since):
                    raise
            else:
                _outage.answered()
                return answer
            await anyio.sleep(RETRY_EVERY_S)

    return wait_and_send
