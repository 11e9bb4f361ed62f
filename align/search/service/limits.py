"""What one request, and one client, may take: an ASGI middleware in front of the application.

A body is bounded in bytes while it comes, no matter what its head says, and the whole request in time. A client has a
bucket of tokens that fills at a steady rate; each request takes some, and one with a picture to decode takes more.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from align.config.serve import ServeConfig
from align.web.guard import App, Receive, Scope, Send

#: Bytes of a request without a picture.
MAX_TEXT_BYTES = 1 << 16
#: What a client may ask for at once, after a pause, in ordinary requests.
_MAX_BURST = 200.0
#: Pictures are read, not computed: a page shows dozens of them. Any other request takes a whole token.
_COST_OF_SHOWN = 0.1
#: Of decoding a picture, in addition: a photograph of a phone takes a tenth of a second.
_COST_OF_PICTURE = 5.0
#: Bytes of a body that count as much as an ordinary request.
_BYTES_PER_TOKEN = 1 << 18
#: Clients whose buckets are remembered; one that is forgotten starts with a full one.
_MAX_CLIENTS = 10_000
#: Addresses to which the file of a picture is sent; the bodies of all others are short.
_PICTURES = frozenset({"/search/image", "/embed/image"})
#: Bytes of all bodies that are here at the same time; decoding takes about twice as much in addition.
_MAX_HELD_BYTES = 1 << 28
_ENDPOINTS = frozenset({"search", "start", "embed", "image", "item", "health", "metrics", "openapi.json"})


class Refused(HTTPException):
    """A refusal; the application does not take it for a body that it cannot parse."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        after = {"retry-after": str(retry_after_s)} if retry_after_s is not None else {}
        super().__init__(status, reason, {"connection": "close"} | after)


class Buckets:
    """Tokens of clients."""

    def __init__(
        self, per_s: float | None, burst: float = _MAX_BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Full ones. `per_s`: None: nobody waits."""
        self._per_s, self._burst, self._clock = per_s, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, cost: float) -> float:
        """Takes tokens and returns 0; or takes none, and returns the seconds until there are enough.

        One token is enough for a request that costs more: the client then has a debt.
        """
        if self._per_s is None:
            return 0.0
        now = self._clock()
        left, seen = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._per_s)
        least = min(cost, 1.0)
        self._left[client] = (left - cost if left >= least else left), now
        while len(self._left) > _MAX_CLIENTS:
            self._left.popitem(last=False)
        return max(least - left, 0.0) / self._per_s

    def take(self, client: str, cost: float) -> None:
        """Takes tokens. Raises HTTPException 429 if there are not enough."""
        if (wait_s := self.wait_s(client, cost)) > 0:
            raise Refused(429, "too many requests from this address; come again later", int(wait_s) + 1)


class RequestMetrics:
    """Requests by endpoint and status, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, histogram = prometheus_client.Counter, prometheus_client.Histogram
        self._num = counter("align_search_requests", "Answered.", ("endpoint", "status"), registry=registry)
        self._seconds = histogram("align_search_request_seconds", "Time to answer.", ("endpoint",), registry=registry)

    def add(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts one request."""
        self._num.labels(endpoint, status).inc()
        self._seconds.labels(endpoint).observe(seconds)


class Limits:
    """Passes on what stays within the limits, and counts every request."""

    def __init__(self, app: App, config: ServeConfig, requests: RequestMetrics, buckets: Buckets) -> None:
        self._app, self._config, self._requests, self._buckets = app, config, requests, buckets
        self._held: Counter[str] = Counter()  # bytes of all bodies that are here

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first = scope["path"].strip("/").partition("/")[0]
        endpoint = first if first in _ENDPOINTS else "page"
        begins, status = time.perf_counter(), 0

        async def count(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        body = _Body(receive, self._held)
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                body.most = self._most_bytes(scope, endpoint)
                await self._app(scope, body, count)
        except Refused as refused:
            await _refusal(refused)(scope, receive, count)
        except TimeoutError:
            if not status:  # otherwise the answer ends here, and so does the connection
                await _refusal(body.too_late(self._config.request_timeout_s))(scope, receive, count)
        finally:
            self._held["body"] -= body.size
            self._requests.add(endpoint, status or 500, time.perf_counter() - begins)

    def _most_bytes(self, scope: Scope, endpoint: str) -> int:
        """The most bytes of the body.

        Raises Refused if the client has asked too often, or says that its body is too large.
        """
        takes_picture = scope["method"] == "POST" and scope["path"] in _PICTURES
        most = self._config.max_body_bytes if takes_picture else MAX_TEXT_BYTES
        length = 0
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and value.isdigit():
                length = int(value)
        cost = _COST_OF_SHOWN if endpoint == "image" else 1.0
        cost += (_COST_OF_PICTURE if takes_picture else 0.0) + min(length, most) / _BYTES_PER_TOKEN
        if (client := scope.get("client")) is not None:
            self._buckets.take(client[0], cost)
        if length > most:
            raise _too_large(most)
        return most


class _Body:
    """`receive`, which raises Refused if a body is too large, or all bodies together are.

    Attributes:
        most: bytes of it.
        size: bytes that are here.
    """

    def __init__(self, receive: Receive, held: Counter[str]) -> None:
        self._receive, self._held, self.most = receive, held, 0
        self.size, self._ended = 0, False

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        num_bytes = len(message.get("body", b""))
        self.size += num_bytes
        self._held["body"] += num_bytes
        if self.size > self.most:
            raise _too_large(self.most)
        if self._held["body"] > _MAX_HELD_BYTES:
            raise Refused(503, "too many large requests come at once; come again in a second", 1)
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def too_late(self, after_s: float) -> Refused:
        """The refusal of a request that took so many seconds."""
        if not self._ended:
            return Refused(408, f"the body did not come within {after_s:g} s")
        return Refused(503, f"there was no answer within {after_s:g} s; come again later", 1)


def _too_large(most: int) -> Refused:
    """The refusal of a body of more than so many bytes."""
    return Refused(413, f"the body is too large: at most {most:,} bytes are read")


def _refusal(refused: Refused) -> JSONResponse:
    return JSONResponse({"error": refused.detail}, refused.status_code, refused.headers)
