"""The real Caddy with infra/compose/Caddyfile: who passes, and what the servers behind it see."""

import base64
import subprocess
import urllib.error
import urllib.request
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tests.support import ROOT, missing, wait_until
from tests.support.mlflow_server import free_port

pytestmark = pytest.mark.cluster
CADDY = ROOT / ".align/validators/bin/caddy"
PORTS = {"prefect": 4200, "mlflow": 5000}


class Echo(BaseHTTPRequestHandler):
    """Answers with the lines of the head, as they came."""

    def do_GET(self):
        body = f"path: {self.path}\n{self.headers}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing on stderr."""


@pytest.fixture(scope="module", name="proxies")
def _proxies(tmp_path_factory):
    """Server -> its address at Caddy; ann's password is `of-ann`. Only the addresses of its file are others."""
    if not CADDY.exists():
        missing("caddy is not installed: make validators")
    folder = tmp_path_factory.mktemp("accounts")
    secrets = folder / "secrets"
    subprocess.run([ROOT / "infra/compose/make_secrets.sh", secrets], check=True, capture_output=True)
    hashed = subprocess.run(
        [CADDY, "hash-password", "--plaintext", "of-ann"], check=True, capture_output=True, text=True
    )
    with (secrets / "accounts").open("a") as accounts:
        accounts.write(f"ann {hashed.stdout.strip()}\n")
    text = (ROOT / "infra/compose/Caddyfile").read_text("utf-8").replace("/run/secrets", str(secrets))
    with ExitStack() as stack:
        at = {}
        for name, port in PORTS.items():
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), Echo))
            Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            claim, free = free_port()
            stack.enter_context(claim)
            assert f"{name}:{port}" in text and f"\n:{port} {{" in text
            text = text.replace(f"{name}:{port}", f"127.0.0.1:{server.server_port}")
            text = text.replace(f"\n:{port} {{", f"\nhttp://127.0.0.1:{free} {{")
            at[name] = f"http://127.0.0.1:{free}"
        (folder / "Caddyfile").write_text(text)
        with (folder / "log").open("w") as log:
            command = [str(CADDY), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
            process = subprocess.Popen(command, env={"HOME": str(folder)}, stdout=log, stderr=log)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
            wait_until(
                lambda: all(status(f"{address}/health") == 200 for address in at.values()),
                30,
                alive=lambda: process.poll() is None,
                says=(folder / "log").read_text,
            )
        at["login"] = (secrets / "proxy_authorization").read_text().strip()
        yield at


def ask(url, login=None, **headers):
    """The head that the server saw."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if login:
        named["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    with urllib.request.urlopen(urllib.request.Request(url, headers=named), timeout=30) as answer:
        return str(answer.read().decode())


def status(url, login=None):
    try:
        ask(url, login)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return 0
    return 200


@pytest.mark.parametrize("name", PORTS)
def test_a_person_passes_with_their_own_login_and_is_named(proxies, name):
    seen = ask(f"{proxies[name]}/api/x?y=1", "ann:of-ann", X_Forwarded_User="bob", x_forwarded_user="carl").lower()
    assert seen.startswith("path: /api/x?y=1\n")
    assert [line for line in seen.splitlines() if "forwarded-user" in line] == ["x-forwarded-user: ann"]
    assert f"authorization: {proxies['login']}".lower() in seen


@pytest.mark.parametrize("login", [None, "ann:of-bob", "bob:of-ann", "align:", ":", "ann:"])
@pytest.mark.parametrize("path", ["/", "/api/health", "/api/x", "/health/x", "/healthy", "/x/../health/../api"])
def test_nobody_else_passes(proxies, login, path):
    assert [status(f"{proxies[name]}{path}", login) for name in PORTS] == [401, 401]


@pytest.mark.parametrize("path", ["/health", "/api/x/../../health", "/api/%2e%2e/health", "//health", "/health/"])
def test_what_looks_like_the_healthcheck_reaches_no_server(proxies, path):
    """The servers would see the shared login with it."""
    for name in PORTS:
        url = f"{proxies[name]}{path}"
        assert status(url) == 401 or ask(url) == ""


def test_the_shared_login_does_not_pass(proxies):
    shared = base64.b64decode(proxies["login"].removeprefix("Basic ")).decode()
    assert shared.startswith("align:")
    assert status(f"{proxies['mlflow']}/", shared) == 401
