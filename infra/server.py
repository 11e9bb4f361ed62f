"""Serves Prefect or MLflow on 127.0.0.1, to its own pages and to programs that know the login of `make up`.

    python infra/server.py prefect|mlflow PORT

Both servers' own commands answer pages of other origins: Prefect's any, MLflow's every page on this machine, and MLflow
takes a name such as `10.example.com` for a private address. So each server's application is run here, behind a guard.

In a container (infra/compose.yaml, infra/kubernetes) ALIGN_SERVER_NAMES has the names under which others know it, such
as `prefect:4200`, and ALIGN_SERVER_BIND the address to listen on. With names, MLflow takes MLFLOW_BACKEND_STORE_URI
(its password in PGPASSWORD), MLFLOW_ARTIFACTS_DESTINATION, and the login of its clients, MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD.
"""

from __future__ import annotations

import base64
import hmac
import os
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from align.run import login
from align.services import postgresql
from align.services.tracking_store import artifacts_beside, settle

HOST = "127.0.0.1"
#: The pages talk to their own server only, as they hold the login: Prefect's sends to a company that counts visits.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"

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

    def __init__(self, app: App, port: int, login: str | None = None, names: Iterable[str] = ()) -> None:
        """Guards `app` at 127.0.0.1:`port` and at `names` (HOST:PORT). With `login` (user:password), a request must
        carry it (HTTP Basic).
        """
        self._app = app
        self._host = f"{HOST}:{port}"
        self._hosts = frozenset({self._host, *names})
        self._authorization = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection, as ASGI asks."""
        if scope["type"] not in ("http", "websocket"):  # the application's start and end
            await self._app(scope, receive, send)
        elif reason := self._foreign(scope):
            await _refuse(scope, send, 403, reason)
        elif self._authorization and scope["path"] != "/health" and not self._knows_login(scope):
            reason = "log in as user align with the password in .align/login"
            await _refuse(scope, send, 401, reason, [(b"www-authenticate", b'Basic realm="align"')])
        else:
            await self._app(scope, receive, _with_policy(send))

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

    def _knows_login(self, scope: Scope) -> bool:
        given = _header(scope, "authorization")
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), str(self._authorization).encode())


def _header(scope: Scope, name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name.encode()]


def _with_policy(send: Send) -> Send:
    async def answer(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
        await send(message)

    return answer


async def _refuse(
    scope: Scope, send: Send, status: int, reason: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": plain})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})


def prefect_app() -> App:
    """Prefect's server with its services, as `prefect server start` makes it; its settings are in the environment."""
    if url := postgresql.for_sqlalchemy(postgresql.PREFECT):
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = url
    from prefect.server.api.server import create_app

    return create_app(final=True)


def mlflow_app(root: Path, shared: Mapping[str, str] | None = None) -> App:
    """MLflow's server over the database and artifacts of the checkout, as `mlflow server` makes it.

    `shared`, the environment of a server for others, names its stores instead. Then clients send and get files through
    the server, and need no credentials of the object store.
    """
    from mlflow import environment_variables as variables
    from mlflow.server import constants

    if shared is None:
        file = root / "mlflow.db"
        settle(file)
        database = postgresql.for_sqlalchemy(postgresql.MLFLOW) or f"sqlite:///{file}"
        artifacts = artifacts_beside(file)
    else:
        from sqlalchemy import make_url

        url = make_url(shared["MLFLOW_BACKEND_STORE_URI"])
        if "PGPASSWORD" in shared:  # a secret apart from the address, as Prefect's driver takes it
            url = url.set(password=shared["PGPASSWORD"])
        database, artifacts = url.render_as_string(hide_password=False), "mlflow-artifacts:/"
        os.environ |= {
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: shared["MLFLOW_ARTIFACTS_DESTINATION"],
        }
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: artifacts,
        variables._MLFLOW_SGI_NAME.name: "uvicorn",
        # Both tell MLflow that this process is a server, which must never run code that a client has stored.
        variables._MLFLOW_SERVER_BOOT_ID.name: uuid.uuid4().hex,
        variables._MLFLOW_IN_JOB_EXECUTOR.name: "false",
    }
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, artifacts)
    from mlflow.server.fastapi_app import app

    return app


def main(argv: list[str]) -> None:
    """Serves until it is told to stop."""
    import uvicorn

    name, port = argv[0], int(argv[1])
    root = Path.cwd()
    names = os.environ.get("ALIGN_SERVER_NAMES", "").split()
    if name == "prefect":
        # Prefect checks the login itself: its pages ask for it, and its WebSockets carry it in their first message.
        guard = Guard(prefect_app(), port, names=names)
    elif names:
        # MLflow's own check knows this machine and private addresses only; it reads these when it is imported.
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join([f"{HOST}:{port}", *names])
        os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(f"https://{name}" for name in names)
        asked = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
        guard = Guard(mlflow_app(root, os.environ), port, asked, names)
    else:
        guard = Guard(mlflow_app(root), port, login(root))
    uvicorn.run(
        guard, host=os.environ.get("ALIGN_SERVER_BIND", HOST), port=port, log_level="warning", proxy_headers=False
    )


if __name__ == "__main__":
    main(sys.argv[1:])
