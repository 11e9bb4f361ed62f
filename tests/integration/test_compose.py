"""infra/compose.yaml without Docker: every service by its own command line, and the pipeline on top of them."""

import base64
import json
import urllib.error
import urllib.request

import boto3
import psutil
import pytest

from align.services.git import git
from tests.support import small_checkout, wait_until
from tests.support.compose import Compose

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]  # all services start, and the pipeline runs on them
FIRST = ("postgres", "s3", "prefect", "mlflow", "setup", "worker")


class Team:
    """What somebody with the secrets does on the machine of the services."""

    def __init__(self, compose):
        self.compose = compose
        self.logins = {
            4200: compose.secret("PREFECT_API_AUTH_STRING"),
            5000: f"align:{compose.secret('MLFLOW_TRACKING_PASSWORD')}",
            7000: compose.secret("ALIGN_SEARCH_LOGIN"),
        }

    def ask(self, port, path, body=None, login=True, host=None):
        """Asks a published port of the file, under the name `host` if one is given; a body is posted."""
        headers = {"Content-Type": "application/json"} | ({"Host": host} if host else {})
        if login and port in self.logins:
            headers["Authorization"] = f"Basic {base64.b64encode(self.logins[port].encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.compose.ports[port]}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def run_pipeline(self, name):
        """Runs the deployed pipeline; returns the state in which it ended."""
        deployment = self.ask(4200, "/api/deployments/name/pipeline/train-and-release")["id"]
        parameters = {"request": {"name": name}}
        run = self.ask(4200, f"/api/deployments/{deployment}/create_flow_run", {"parameters": parameters})["id"]
        ends = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_until(lambda: self.ask(4200, f"/api/flow_runs/{run}")["state_type"] in ends, 900, pause_s=2)
        return str(self.ask(4200, f"/api/flow_runs/{run}")["state_type"])

    def keys(self, prefix):
        """What is in the bucket."""
        credentials = dict(line.split(" = ") for line in self.compose.secret("aws_credentials").splitlines()[1:])
        url = f"http://127.0.0.1:{self.compose.ports[8333]}"
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **credentials)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket="align", Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    root = tmp_path_factory.mktemp("compose")
    compose = Compose(root, small_checkout.write(root / "project"))
    try:
        compose.up(*FIRST)
        yield Team(compose)
    finally:
        compose.down()


def test_only_those_with_the_login_are_answered(team):
    for port, path in ((4200, "/api/admin/version"), (5000, "/api/2.0/mlflow/experiments/get?experiment_id=0")):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            team.ask(port, path, login=False)
        assert team.ask(port, path)
        assert team.ask(port, path, host={4200: "prefect:4200", 5000: "mlflow:5000"}[port])  # as in the containers
    request = urllib.request.Request(
        f"http://127.0.0.1:{team.compose.ports[5000]}/health", headers={"Host": "evil.example"}
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=30)


def test_a_service_has_its_own_secrets_only_and_shows_none(team):
    compose = team.compose
    everything = (
        "POSTGRES_PASSWORD", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_READER_PASSWORD",
        "ALIGN_SEARCH_LOGIN",
    )  # fmt: skip
    has = {
        "postgres": set(),  # reads its file
        "s3": set(),
        "prefect": {"POSTGRES_PASSWORD", "PREFECT_API_AUTH_STRING"},
        "mlflow": {"POSTGRES_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_READER_PASSWORD"},
        "worker": {"PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD"},
    }
    for name, expected in has.items():
        family = compose.family(name)
        values = {value for process in family for value in process.environ().values()}
        assert {secret for secret in everything if compose.secret(secret) in values} == expected, name
        for secret in everything:
            assert compose.secret(secret) not in " ".join(word for process in family for word in process.cmdline()), (
                name
            )
            assert compose.secret(secret) not in compose.log(name), name
    for secret in everything:
        assert compose.secret(secret) not in compose.log("setup")


def test_services_listen_on_loopback_only_at_the_ports_of_the_file(team):
    compose = team.compose
    for name in (service for service in FIRST if service != "setup"):  # which has ended
        connections = [one for process in compose.family(name) for one in process.net_connections("tcp")]
        listening = {(one.laddr.ip, one.laddr.port) for one in connections if one.status == psutil.CONN_LISTEN}
        assert listening and {ip for ip, _ in listening} == {"127.0.0.1"}, (name, listening)
        published = {int(entry.rpartition(":")[2]) for entry in compose.services[name].get("ports", [])}
        assert {compose.ports[port] for port in published} <= {port for _, port in listening}, (name, listening)


def test_the_pipeline_runs_and_its_results_are_kept_by_the_services(team):
    compose = team.compose
    state = team.run_pipeline("team")
    printed = (compose.project / ".align/logs/runs.log").read_text()
    assert state == "COMPLETED", printed[-5000:]
    assert compose.secret("MLFLOW_TRACKING_PASSWORD") not in printed
    assert git(compose.project, "branch", "--list", "run/team").strip() == "run/team"

    alias = "/api/2.0/mlflow/registered-models/alias?name=align&alias="
    version = team.ask(5000, f"{alias}candidate")["model_version"]
    run = team.ask(5000, f"/api/2.0/mlflow/runs/get?run_id={version['run_id']}")["run"]
    assert run["info"]["status"] == "FINISHED" and run["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
    kept = team.keys("mlflow/")
    assert any(key.endswith("/model.safetensors") for key in kept) and any(version["run_id"] in key for key in kept)

    assert team.keys("dvc/") == []
    pushed = compose.run("worker", "dvc", "push", "--remote", "s3", "--all-branches")
    assert pushed.returncode == 0, pushed.stdout + pushed.stderr
    cached = {
        path.relative_to(compose.project / ".dvc/cache") for path in (compose.project / ".dvc/cache/files").rglob("*")
    }
    files = {f"dvc/{path}" for path in cached if (compose.project / ".dvc/cache" / path).is_file()}
    there = set(team.keys("dvc/"))
    assert there and there <= files and any(key.endswith(".dir") for key in there)

    body = {"name": "align", "alias": "champion", "version": version["version"]}
    team.ask(5000, "/api/2.0/mlflow/registered-models/alias", body)  # whether it deserves it is another test's
    compose.up("search")
    wait_until(lambda: team.ask(7000, "/health")["ready"], says=lambda: team.ask(7000, "/health"), pause_s=1)
    rows = team.ask(7000, "/embed", {"texts": ["a red heart", "a blue fish"]})["embeddings"]
    environment = compose.family("search")[0].environ().values()
    has = {
        name for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_READER_PASSWORD") if compose.secret(name) in environment
    }
    assert has == {"MLFLOW_READER_PASSWORD"}
    lengths = [sum(value * value for value in row) for row in rows]
    assert lengths == pytest.approx([1.0, 1.0], abs=1e-3)
