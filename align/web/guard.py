"""Decides whom a server of ours answers: its own pages, and programs. One ASGI middleware for all servers.

Loopback alone does not protect a server from a browser: any page that a person opens may ask 127.0.0.1, or let its own
host name point there.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse

from align.web import HOST

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Passes on what a server's own pages, and programs, ask for; refuses what other web pages ask for.

    A request must name our address: a page whose host name was pointed at 127.0.0.1 names its own. Its origin must be
    ours, and so must be the site that a browser says it comes from. A link that a person follows may come from
    anywhere, since opening a page changes nothing.
    """

    def __init__(
        self,
        app: App,
        port: int,
        login: str | None = None,
        names: Iterable[str] = (),
        *,
        policy: bytes,
        login_of: str = "that the server was started with",
        reader: str | None = None,
    ) -> None:
        """Guards an application.

        Args:
            app: it.
            port: of 127.0.0.1.
            login: user:password; a request must carry it (HTTP Basic), except for /health.
            names: further HOST:PORT under which it is known.
            policy: the content security policy of its pages.
            login_of: where people find user and password; a person without a login is told.
            reader: a second login that may read and change nothing: only GET and HEAD.
        """
        self._app = app
        self._host = f"{HOST}:{port}"
        self._hosts = frozenset({self._host, *names})
        self._policy, self._login_of = policy, login_of
        self._login, self._reader = _basic(login), _basic(reader)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection, as ASGI asks."""
        if scope["type"] not in ("http", "websocket"):  # the application's start and end
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await _refuse(scope, receive, send, *refusal)
        else:
            with suppress(ClientDisconnect):  # in the middle of its body: else 4 kB of log for each
                await self._app(scope, receive, _with_policy(send, self._policy))

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason; None if the request is answered."""
        if reason := self._foreign(scope):
            return 403, reason
        if self._login is None or scope["path"] == "/health" or _carries(scope, self._login):
            return None
        if self._reader and _carries(scope, self._reader):
            return None if scope.get("method") in ("GET", "HEAD") else (403, "this login reads, and changes nothing")
        return 401, f"log in with the user and the password {self._login_of}"

    def _foreign(self, scope: Scope) -> str | None:
        """Why the request is not from our own pages or a program; None if it is."""
        host = _header(scope, "host")
        if len(host) != 1 or host[0] not in self._hosts:
            return f"open http://{self._host} instead: this server answers to no other name"
        ours = {f"http://{host[0]}", *([] if host[0] == self._host else [f"https://{host[0]}"])}  # a proxy has TLS
        if any(origin not in ours for origin in _header(scope, "origin")):
            return "this server answers only to its own pages"
        mode, target = _header(scope, "sec-fetch-mode"), _header(scope, "sec-fetch-dest")
        follows_link = scope.get("method") == "GET" and (mode, target) == (["navigate"], ["document"])
        if not follows_link and any(site not in ("same-origin", "none") for site in _header(scope, "sec-fetch-site")):
            return "this server answers only to its own pages"
        return None


def _basic(login: str | None) -> str | None:
    """The header of a login."""
    return f"Basic {base64.b64encode(login.encode()).decode()}" if login else None


def _carries(scope: Scope, authorization: str) -> bool:
    given = _header(scope, "authorization")
    return len(given) == 1 and hmac.compare_digest(given[0].encode(), authorization.encode())


def _header(scope: Scope, name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name.encode()]


def _with_policy(send: Send, policy: bytes) -> Send:
    async def answer(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"content-security-policy", policy)]
        await send(message)

    return answer


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    login = {"www-authenticate": 'Basic realm="align"'} if status == 401 else {}
    headers = {"x-content-type-options": "nosniff", **login}
    await PlainTextResponse(f"{reason}\n", status, headers)(scope, receive, send)
