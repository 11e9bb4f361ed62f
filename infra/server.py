"""Serves Prefect or MLflow on 127.0.0.1, to its own pages and to programs that know the login of `make up`.

    python infra/server.py prefect|mlflow PORT

Both servers' own commands answer pages of other origins: Prefect's any, MLflow's every page on this machine, and MLflow
takes a name such as `10.example.com` for a private address. So each server's application is run here, behind a guard.

In a container (infra/compose.yaml) ALIGN_SERVER_NAMES has the names under which others know it, such
as `prefect:4200`, and ALIGN_SERVER_BIND the address to listen on. With names, MLflow takes MLFLOW_BACKEND_STORE_URI
(its password in PGPASSWORD), MLFLOW_ARTIFACTS_DESTINATION, and the login of its clients, MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD; with MLFLOW_READER_PASSWORD, user `reader` may read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from align.errors import ServiceError
from align.local_stack import LOGIN_FILE, READER_LOGIN_FILE, login
from align.services.tracking.address import WHO
from align.services.tracking.database import artifacts_beside, make_private, require_here, require_whole
from align.web import HOST
from align.web.guard import App, Guard, Receive, Scope, Send

#: The pages talk to their own server only, as they hold the login: Prefect's sends to a company that counts visits.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'"

#: The header in which a proxy names the person.
PERSON = "x-forwarded-user"
#: At a time.
_CONNECTIONS = 4096


def prefect_app() -> App:
    """Prefect's server with its services, as `prefect server start` makes it; its settings are in the environment."""
    home = os.environ.get("PREFECT_HOME")  # of a checkout
    if home and "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in os.environ:
        require_whole(Path(home, "prefect.db"))
        make_private(Path(home, "prefect.db"))
    from prefect.server.api.server import create_app

    return create_app(final=True)


def signed(app: App) -> App:
    """Prefect's server, which records who starts a run and who answers one, where a proxy has a login for each person.

    The proxy (infra/compose/Caddyfile) names the person in a header, in place of any that was sent. The name becomes a
    label of the run that is started, and `who` of an answer. A label that a client sends itself is left out.
    """
    from starlette.requests import Request

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        action = scope["path"].rpartition("/")[2] if scope["type"] == "http" and scope["method"] == "POST" else ""
        if action in ("create_flow_run", "resume"):
            request = Request(scope, receive)
            body = await request.body()
            with suppress(ValueError, AttributeError, TypeError):  # not what Prefect takes: it says so
                body = json.dumps(_signed(json.loads(body), action, request.headers.get(PERSON))).encode()
            headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(body)).encode())]}
            parts = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def whole() -> MutableMapping[str, Any]:
                return next(parts, None) or await receive()

            await app(scope, whole, send)
        else:
            await app(scope, receive, send)

    return answer


def _signed(values: dict[str, Any], action: str, who: str | None) -> dict[str, Any]:
    if action == "create_flow_run":
        labels = {key: value for key, value in (values.get("labels") or {}).items() if key != WHO}
        return values | {"labels": labels | ({WHO: who} if who else {})}
    return values | {"run_input": values["run_input"] | {"who": who}} if who and values.get("run_input") else values


def mlflow_app(root: Path, shared: Mapping[str, str] | None = None) -> App:
    """MLflow's server over the database and artifacts of the checkout, as `mlflow server` makes it.

    MLFLOW_BACKEND_STORE_URI names a database in place of the file.

    `shared`, the environment of a server for others, names its stores instead. Then clients send and get files through
    the server, and need no credentials of the object store.
    """
    from mlflow import server
    from mlflow.server import constants

    from align.services.tracking.tracker import make_database

    if shared is None:
        file = root / "mlflow.db"
        if (url := os.environ.get("MLFLOW_BACKEND_STORE_URI")) is None:
            require_whole(file)
            require_here(file)
            make_database(file)
            make_private(file)
        database, artifacts = url or f"sqlite:///{file}", artifacts_beside(file)
    else:
        from sqlalchemy import make_url

        address = make_url(shared["MLFLOW_BACKEND_STORE_URI"])
        if "PGPASSWORD" in shared:  # a secret apart from the address, as Prefect's driver takes it
            address = address.set(password=shared["PGPASSWORD"])
        database, artifacts = address.render_as_string(hide_password=False), "mlflow-artifacts:/"
        os.environ |= {
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: shared["MLFLOW_ARTIFACTS_DESTINATION"],
        }
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: artifacts,
    }
    server.is_running_as_server = True  # a server must never run code that a client has stored
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(database, database, artifacts)
    from mlflow.server.assistant.api import assistant_router

    # MLflow's assistant has programs of this machine run commands: who may compare runs may not do that.
    assistant_router.routes.clear()
    from mlflow.server.fastapi_app import app

    return app


def main(argv: list[str]) -> None:
    """Serves until it is told to stop."""
    from align.web.server import serve

    name, port = argv[0], int(argv[1])
    root = Path.cwd()
    names = os.environ.get("ALIGN_SERVER_NAMES", "").split()
    if name == "prefect":
        # Prefect checks the login itself: its pages ask for it, and its WebSockets carry it in their first message.
        guard = Guard(signed(prefect_app()), port, names=names, policy=POLICY)
    elif names:
        # MLflow's own check knows this machine and private addresses only; it reads these when it is imported.
        os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join([f"{HOST}:{port}", *names])
        os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(f"https://{name}" for name in names)
        asked = f"{os.environ['MLFLOW_TRACKING_USERNAME']}:{os.environ['MLFLOW_TRACKING_PASSWORD']}"
        login_of = "of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which the server was started with"
        word = os.environ.get("MLFLOW_READER_PASSWORD")
        reader = f"reader:{word}" if word else None
        app = mlflow_app(root, os.environ)
        guard = Guard(app, port, asked, names, policy=POLICY, login_of=login_of, reader=reader)
    else:
        reader = login(root, READER_LOGIN_FILE)
        guard = Guard(mlflow_app(root), port, login(root), policy=POLICY, login_of=f"in {LOGIN_FILE}", reader=reader)
    bind, log = os.environ.get("ALIGN_SERVER_BIND", HOST), os.environ.get("ALIGN_SERVER_LOG")
    try:
        serve(guard, bind, port, max_connections=_CONNECTIONS, log=Path(log) if log else None)
    except ServiceError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
