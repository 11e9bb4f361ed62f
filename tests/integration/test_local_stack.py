"""What the local stack refuses: other web pages, in a real browser, and programs without the login."""

import base64
import http.client
import json
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.support.browser import open_page
from tests.support.web_server import WebServer, response

pytestmark = pytest.mark.shared_stack

#: What a hostile page tries on one server: name of the attempt -> what it could see. It knows all names and ids.
ATTACK = """(async (server, reads, writes, sockets, picture) => {
  const seen = {};
  const note = async (name, asking) => {
    try {
      const answer = await asking;
      seen[name] = answer.type === "opaque" ? "opaque" : answer.status + " " + (await answer.text()).slice(0, 200);
    } catch { seen[name] = "no answer"; }
  };
  for (const path of reads)
    for (const credentials of ["include", "omit"])
      await note(`read ${path} ${credentials}`, fetch(server + path, {credentials}));
  const cookies = {credentials: "include"};
  for (const [method, path, template] of writes) {
    const body = template.replace("NAME", "planted-" + Math.random().toString(36).slice(2));
    const json = {"Content-Type": "application/json"}, simple = {"Content-Type": "text/plain"};
    await note(`${method} ${path} json`, fetch(server + path, {method, body, headers: json, ...cookies}));
    if (method !== "POST") continue;
    await note(`${path} text`, fetch(server + path, {method, body, headers: simple, ...cookies}));
    await note(`${path} no type`, fetch(server + path, {method, body: new Blob([body]), mode: "no-cors", ...cookies}));
    await note(`${path} no-cors`, fetch(server + path, {method, body, mode: "no-cors", ...cookies}));
    navigator.sendBeacon(server + path, new Blob([body]));
    const frame = document.createElement("iframe");
    frame.name = "frame";
    const form = document.createElement("form");
    Object.assign(form, {method, action: server + path, enctype: "text/plain", target: "frame"});
    const field = document.createElement("input");
    [field.name, field.value] = [body.slice(0, -1) + ', "x": "', '"}'];
    form.append(field);
    document.body.append(frame, form);
    const done = new Promise((resolve) => { frame.onload = resolve; setTimeout(resolve, 3000); });
    form.submit();
    await done;
    frame.remove();
  }
  for (const [tag, path] of [["script", reads[0]], ["img", picture]])
    seen[`${tag} ${path}`] = await new Promise((resolve) => {
      const element = document.createElement(tag);
      element.onload = () => resolve("200 loaded");
      element.onerror = () => resolve("no answer");
      element.src = server + path + "?" + Math.random(); // never from the cache
      document.body.append(element);
    });
  for (const path of sockets)
    for (const protocols of [[], ["prefect"]])
      seen[`socket ${path} ${protocols}`] = await new Promise((resolve) => {
        const socket = new WebSocket(server.replace("http", "ws") + path, protocols);
        socket.onopen = () => { socket.send('{"type": "auth", "token": ""}'); resolve("200 opened"); };
        socket.onerror = () => resolve("no answer");
      });
  return seen;
})"""


@dataclass(frozen=True)
class Target:
    """What a page tries on a server: to read paths, to write (method, path, body), WebSockets, a picture of its UI."""

    port: int
    reads: list[str]
    writes: list[tuple[str, str, dict[str, Any]]]
    sockets: list[str]
    picture: str

    def attack(self, page, host="127.0.0.1"):
        """Tries everything from the open page, by this name of the server; attempt -> what the page could see."""
        writes = [(method, path, json.dumps(body)) for method, path, body in self.writes]
        arguments = (f"http://{host}:{self.port}", self.reads, writes, self.sockets, self.picture)
        return page.run(f"({ATTACK})(...{json.dumps(arguments)})")


def prefect_target(port, deployment):
    scheduled = {"state": {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}}
    return Target(
        port=port,
        reads=["/api/version", "/api/admin/settings", "/ui-settings"],
        writes=[
            ("POST", f"/api/deployments/{deployment}/create_flow_run", scheduled),
            ("POST", "/api/variables/", {"name": "NAME", "value": 1}),
            ("PATCH", f"/api/deployments/{deployment}", {"description": "planted"}),
        ],
        sockets=["/api/events/in", "/api/events/out", "/api/logs/out"],
        picture="/ico/favicon-32x32.png",
    )


def mlflow_target(port):
    question = '{ mlflowGetExperiment(input: {experimentId: "0"}) { experiment { name } } }'
    return Target(
        port=port,
        reads=["/version", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/ajax-api/3.0/mlflow/server-info"],
        writes=[
            ("POST", "/api/2.0/mlflow/registered-models/create", {"name": "NAME"}),
            ("POST", "/ajax-api/2.0/mlflow/experiments/create", {"name": "NAME"}),
            ("POST", "/graphql", {"query": question}),
        ],
        sockets=["/ajax-api/3.0/mlflow/assistant"],
        picture="/static-files/favicon.ico",
    )


def changed(stack):
    """What the attacks try to change."""
    deployments = stack.ask("/deployments/filter", {})
    experiments = stack.ask(f"{stack.mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 1000})
    models = stack.ask(f"{stack.mlflow}/api/2.0/mlflow/registered-models/search?max_results=1000")
    return {
        "flow runs": stack.ask("/flow_runs/count", {}),
        "planted": sum("planted" in str(item) for item in (deployments, experiments, models)),
        "variables": stack.ask("/variables/count", {}),
        "experiments": len(experiments["experiments"]),
    }


@pytest.fixture(name="elsewhere")
def _elsewhere():
    """The port of another web server on this machine."""
    with WebServer() as server:
        server.fallback = response(b"<body>a page of somebody else</body>", Content_Type="text/html")
        yield server.port


def status(url, path, body=None, **headers):
    """The status of a GET, or of a POST if there is a body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    kinds = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("GET" if body is None else "POST", path, body, kinds | headers)
    answer = connection.getresponse().status
    connection.close()
    return answer


def basic(login):
    return f"Basic {base64.b64encode(login.encode()).decode()}"


def test_programs_need_the_login(stack):
    experiments = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    asked = (
        (stack.prefect, "/api/flow_runs/count", "{}"),
        (stack.mlflow, experiments, None),
        (stack.search, "/openapi.json", None),
    )
    create = (stack.mlflow, "/api/2.0/mlflow/experiments/create", json.dumps({"name": f"made-{time.monotonic_ns()}"}))
    for url, path, body in asked:
        good = {"Authorization": basic(stack.login_of("login_search" if url == stack.search else "login"))}
        assert status(url, path, body, **good) == 200
        assert status(url, path, body) == 401
        assert status(url, path, body, Authorization=basic("align:wrong")) == 401
        for host in ("attacker.example", "10.attacker.example", url.replace("http://127.0.0.1", "localhost")):
            assert status(url, path, body, Host=host, **good) == 403
        for origin in ("http://attacker.example", "http://127.0.0.1:1", "null"):
            assert status(url, path, body, Origin=origin, **good) == 403
        for site in ("cross-site", "same-site"):
            assert status(url, path, body, **good, **{"Sec-Fetch-Site": site}) == 403
    known = {name: {"Authorization": basic(stack.login_of(name))} for name in ("login", "login_search", "login_reader")}
    opened = {
        name: [status(url, path, body, **good) for url, path, body in (*asked, create)] for name, good in known.items()
    }
    assert opened == {
        "login": [200, 200, 401, 200], "login_search": [401, 401, 200, 401], "login_reader": [401, 200, 401, 403],
    }  # fmt: skip
    assert status(stack.prefect, "/", **{"Sec-Fetch-Site": "cross-site"}) == 403
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert status(stack.prefect, "/", **link) in (200, 307)  # a link that a person follows


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_websockets_need_the_login(stack, path):
    port = int(stack.prefect.rpartition(":")[2])

    def first_answer(token, host="127.0.0.1", origin=None):
        options = {"subprotocols": ["prefect"], "origin": origin}
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            connect(f"ws://{host}:{port}{path}", sock=plain, **options) as connection,
        ):
            connection.send(json.dumps({"type": "auth", "token": token}))
            return json.loads(connection.recv(timeout=100))

    assert first_answer(stack.login) == {"type": "auth_success"}
    with pytest.raises(ConnectionClosed):
        first_answer("align:wrong")
    for name in ({"origin": "http://attacker.example"}, {"host": "attacker.example"}):
        with pytest.raises(InvalidStatus, match="403"):
            first_answer(stack.login, **name)


@pytest.mark.parametrize("variable", ["command", "env", "env.PATH", "working_dir", "stream_output"])
def test_a_run_sets_nothing_of_its_process(stack, variable):
    deployment = stack.ask("/deployments/name/pipeline/train-and-release")["id"]
    before = stack.ask("/flow_runs/count", {})
    body = json.dumps({"job_variables": {variable: "touch pwned"}})
    path = f"/api/deployments/{deployment}/create_flow_run"
    assert status(stack.prefect, path, body, Authorization=basic(stack.login)) == 422
    assert stack.ask("/flow_runs/count", {}) == before


def test_the_stack_is_small(stack):
    """Four programs, none with a process of its own: MLflow's job runners would be eight, of a gigabyte. There is no
    champion, so the search service has not loaded torch, which takes 0.3 GB more.
    """
    services = json.loads((stack.root / ".align/services.json").read_text())
    everything = []  # also what has another parent since: `make up` gives each this variable
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("ALIGN_ROOT") == str(stack.root):
                everything.append(process)
    assert {process.pid for process in everything} == {service["pid"] for service in services.values()}
    sizes = {name: psutil.Process(service["pid"]).memory_full_info().pss for name, service in services.items()}
    assert sum(sizes.values()) < 1e9, sizes
    print({name: f"{size / 1e6:.0f} MB" for name, size in sizes.items()})


def test_each_server_cuts_off_a_head_that_never_ends_and_opens_what_files_it_may(stack):
    addresses = (stack.prefect, stack.mlflow, stack.search)
    dripping = [socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) for address in addresses]
    begins = time.monotonic()
    while dripping and time.monotonic() - begins < 100:
        for one in dripping[:]:
            try:
                one.sendall(b"GET / HTTP/1.1\r\nx-more: " if time.monotonic() - begins < 1 else b"x")
            except OSError:
                one.close()
                dripping.remove(one)
        time.sleep(1)
    assert not dripping
    services = json.loads((stack.root / ".align/services.json").read_text())
    for name in ("prefect", "mlflow", "search"):
        process = psutil.Process(services[name]["pid"])
        assert process.environ()["ALIGN_SERVER_LOG"] == str(stack.root / f".align/logs/{name}.log")
        if sys.platform == "linux":
            soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
            assert soft == hard


@pytest.mark.browser
def test_the_uis_ask_for_the_login_and_other_pages_get_nothing(stack, elsewhere, tmp_path):
    deployment = stack.ask("/deployments/name/pipeline/train-and-release")["id"]
    prefect = prefect_target(int(stack.prefect.rpartition(":")[2]), deployment)
    mlflow = mlflow_target(int(stack.mlflow.rpartition(":")[2]))
    rules = "MAP attacker.example 127.0.0.1,MAP 10.attacker.example 127.0.0.1,EXCLUDE 127.0.0.1"
    with open_page(tmp_path / "profile", f"--host-resolver-rules={rules}") as page:
        page.open(stack.prefect)
        page.wait("document.querySelector('input[type=password]')")
        page.run("document.querySelector('input').focus()")
        page.type(stack.login)
        page.run("document.querySelector('form').requestSubmit()")
        page.wait("!location.pathname.includes('login')")
        page.open(f"{stack.prefect}/deployments")
        page.wait("['pipeline', 'promote', 'rollback'].every((name) => document.body.innerText.includes(name))")
        assert prefect.attack(page)["socket /api/events/out prefect"] == "200 opened"  # the attacks are real ones
        outside = f"fetch('http://127.0.0.1:{elsewhere}', {{mode: 'no-cors'}}).then(() => 'sent', () => 'refused')"
        assert page.run(outside) == "refused"  # nor does the page, which holds the login, send it elsewhere
        page.open(stack.mlflow.replace("http://", f"http://{stack.login}@"))
        page.wait("document.body.innerText.includes('Experiments')")
        own = mlflow.attack(page)
        assert own[f"read {mlflow.reads[1]} include"].startswith("200")
        assert own[f"POST {mlflow.writes[0][1]} json"].startswith("200")

        before = changed(stack)
        for origin in (
            f"http://127.0.0.1:{elsewhere}",
            f"http://localhost:{elsewhere}",
            f"http://attacker.example:{elsewhere}",
        ):
            page.open(origin)
            for target in (prefect, mlflow):
                assert_nothing_seen(target.attack(page))
        for host in ("attacker.example", "10.attacker.example", "localhost"):  # names pointed at the servers themselves
            for target in (prefect, mlflow):
                page.open(f"http://{host}:{target.port}/")
                assert page.run("document.body.innerText") == (
                    f"open http://127.0.0.1:{target.port} instead: this server answers to no other name\n"
                )
                assert_nothing_seen(target.attack(page, host))
    assert changed(stack) == before


def assert_nothing_seen(seen):
    assert len(seen) > 10
    for name, answer in seen.items():
        assert answer in ("opaque", "no answer") or answer.startswith("403 open "), (name, answer)
