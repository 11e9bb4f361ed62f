"""What one request, and one client, may take: an ASGI middleware in front of the application.

A body is bounded in bytes and in time while it comes, whatever its head says. A client has a bucket of tokens that
fills at a steady rate; each request takes some.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

from align.config.serve import ServeConfig
from align.guard import App, Receive, Scope, Send
from align.search.service.metrics import RequestMetrics

#: Pictures are read, not computed: a page shows dozens of them.
_COSTS = {"image": 0.1, "search": 1.0, "embed": 1.0, "item": 1.0}
#: Clients whose buckets are remembered; one that is forgotten starts with a full one.
_MAX_CLIENTS = 10_000
_ENDPOINTS = frozenset({"search", "embed", "image", "item", "health", "metrics", "docs", "openapi.json"})


class _Refused(HTTPException):
    """The application's own kind, which it does not take for a body that it cannot parse."""

    def __init__(self, status: int, reason: str, retry_after_s: int | None = None) -> None:
        after = {"retry-after": str(retry_after_s)} if retry_after_s is not None else {}
        super().__init__(status, reason, {"connection": "close"} | after)


class Buckets:
    """Tokens of clients."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._burst, self._clock = per_s, float(burst), clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, client: str, cost: float) -> float:
        """Takes tokens and returns 0; or takes none, and returns the seconds until there are enough."""
        now = self._clock()
        left, seen = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._per_s)
        enough = left >= min(cost, self._burst)
        self._left[client] = (left - cost if enough else left), now
        while len(self._left) > _MAX_CLIENTS:
            self._left.popitem(last=False)
        return 0.0 if enough else (cost - left) / self._per_s


class Limits:
    """Passes on what stays within the limits, and counts every request."""

    def __init__(self, app: App, config: ServeConfig, metrics: RequestMetrics) -> None:
        self._app, self._config, self._metrics = app, config, metrics
        per_s = config.max_requests_per_s
        self._buckets = Buckets(per_s, config.max_burst) if per_s is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection, as ASGI asks."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first = scope["path"].strip("/").partition("/")[0]
        endpoint = first if first in _ENDPOINTS else "page"
        begins, status = time.perf_counter(), 500

        async def count(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            self._take(scope, endpoint)
            await self._app(scope, self._bounded(scope, receive), count)
        except _Refused as refused:
            await _refuse(refused, count)
        finally:
            self._metrics.add(endpoint, status, time.perf_counter() - begins)

    def _take(self, scope: Scope, endpoint: str) -> None:
        """Raises _Refused where the client has asked too often, or says that its body is too large."""
        cost, client = _COSTS.get(endpoint), scope.get("client")
        if self._buckets is not None and cost is not None and client is not None:
            wait_s = self._buckets.wait_s(client[0], cost)
            if wait_s > 0:
                raise _Refused(429, "too many requests from this address; come again later", int(wait_s) + 1)
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and value.isdigit() and int(value) > self._config.max_body_bytes:
                raise self._too_large()

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive`, which raises _Refused where a body is too large or too slow."""
        size, deadline, ended = 0, time.monotonic() + self._config.body_timeout_s, False

        async def next_part() -> MutableMapping[str, Any]:
            nonlocal size, ended
            if ended:  # waits for the client to leave
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
            except TimeoutError:
                raise _Refused(408, f"the body did not come within {self._config.body_timeout_s:g} s") from None
            size += len(message.get("body", b""))
            if size > self._config.max_body_bytes:
                raise self._too_large()
            ended = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return next_part

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the body is too large: at most {self._config.max_body_bytes:,} bytes are read")


async def _refuse(refused: _Refused, send: Send) -> None:
    body = json.dumps({"error": refused.detail}).encode()
    given = {"content-type": "application/json", "content-length": str(len(body))} | dict(refused.headers or {})
    headers = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
