"""What one request, and one client, may take: an ASGI middleware in front of the application.

A body says its length, which is bounded; a request has one deadline; a client has few requests in work at a time, and
those beyond wait for their turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from align.config.serve import ServeConfig
from align.web.guard import App, Receive, Scope, Send

#: Bytes of a request without a picture.
MAX_TEXT_BYTES = 1 << 16
#: Requests of one client that are in work at a time: with a picture, fewer than there are decoders, and others, fewer
#: than asyncio has threads, so that some are free for other clients.
_IN_WORK = {True: 2, False: 4}
#: Addresses to which the file of a picture is sent.
_PICTURES = frozenset({"/search/image", "/embed/image"})
#: Bytes of all bodies that are in work; decoding takes about twice as much in addition.
_MAX_HELD_BYTES = 1 << 28
_ENDPOINTS = frozenset({"search", "start", "embed", "image", "item", "health", "metrics", "openapi.json"})
#: They wait for nobody.
_AT_ONCE = frozenset({"health", "metrics"})


class _Refused(HTTPException):
    def __init__(self, status: int, reason: str) -> None:
        after = {"retry-after": "1"} if status == 503 else {}
        super().__init__(status, reason, {"connection": "close"} | after)


class Limits:
    """Passes on what stays within the limits, and counts every request."""

    def __init__(self, app: App, config: ServeConfig, registry: CollectorRegistry, *, by_client: bool = True) -> None:
        """Counts in `registry`. `by_client`: clients have addresses of their own; behind a proxy they do not."""
        self._app, self._config, self._by_client = app, config, by_client
        what = ("endpoint", "status")
        self._num = Counter("align_search_requests", "Answered.", what, registry=registry)
        self._seconds = Histogram("align_search_request_seconds", "Time to answer.", what[:1], registry=registry)
        self._turns: WeakValueDictionary[tuple[str, bool], asyncio.Semaphore] = WeakValueDictionary()
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first = scope["path"].strip("/").partition("/")[0]
        endpoint = first if first in _ENDPOINTS else "page"
        begins, status, reads = time.perf_counter(), 0, False

        async def read() -> MutableMapping[str, Any]:
            nonlocal reads
            reads = True
            message = await receive()
            reads = message.get("more_body", False)
            return message

        async def count(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        wait_s = self._config.request_timeout_s
        try:
            async with asyncio.timeout(wait_s), self._turn(scope, endpoint):
                await self._app(scope, read, count)
        except (TimeoutError, _Refused) as error:
            late = 503, f"there was no answer within {wait_s:g} s; come again later"
            if reads:
                late = 408, f"the body did not come within {wait_s:g} s"
            refused = error if isinstance(error, _Refused) else _Refused(*late)
            if not status:  # otherwise the answer ends here
                answer = JSONResponse({"error": refused.detail}, refused.status_code, refused.headers)
                await answer(scope, receive, count)
        finally:
            self._num.labels(endpoint, status or 500).inc()
            self._seconds.labels(endpoint).observe(time.perf_counter() - begins)

    @asynccontextmanager
    async def _turn(self, scope: Scope, endpoint: str) -> AsyncIterator[None]:
        """Holds a request's place among those in work. Raises _Refused if its body is too large, or all are."""
        with_picture = scope["method"] == "POST" and scope["path"] in _PICTURES
        length = _length(scope, self._config.max_body_bytes if with_picture else MAX_TEXT_BYTES)
        client = scope["client"][0] if scope.get("client") else ""
        turns = self._turns.setdefault((client, with_picture), asyncio.Semaphore(_IN_WORK[with_picture]))
        async with turns if self._by_client and endpoint not in _AT_ONCE else nullcontext():
            if self._held + length > _MAX_HELD_BYTES:
                raise _Refused(503, "too many large requests come at once; come again in a second")
            self._held += length
            try:
                yield
            finally:
                self._held -= length


def _length(scope: Scope, most: int) -> int:
    """Bytes of the body; the server holds it to what its head says."""
    headers = {name.lower(): value for name, value in scope["headers"]}
    if b"transfer-encoding" in headers:
        raise _Refused(411, "send the body with its length (Content-Length), not in chunks")
    length = int(headers.get(b"content-length", b"0"))
    if length > most:
        raise _Refused(413, f"the body is too large: at most {most:,} bytes are read")
    return length
