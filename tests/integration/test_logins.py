"""Which login opens what and who holds it; secrets of users are in nothing that a run records or shows."""

import base64
import json
import subprocess
import urllib.error

import psutil
import pytest

from align.errors import RefusedError
from align.services.tracking.registry import CHAMPION, MODEL_ARTIFACT
from align.services.tracking.tracker import Tracker
from tests.support.local_stack import SECRETS

pytestmark = pytest.mark.shared_stack


def test_the_password_is_in_its_file_only(stack):
    stack.ask("/flow_runs/count", {})
    for name in ("login", "login_search", "login_reader"):
        require_kept(stack, stack.root / ".align" / name)


def require_kept(stack, file):
    assert file.stat().st_mode & 0o777 == 0o600
    login = stack.login_of(file.name)
    user, password = login.split(":")
    assert user == "align" and len(password) >= 32
    for text in (password, base64.b64encode(login.encode()).decode()):
        holders = [path for path in stack.root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
        assert holders == ([file] if text == password else [])
        assert text not in stack.said
        for process in psutil.process_iter(["cmdline"]):
            assert text not in " ".join(process.info["cmdline"] or [])


def test_the_search_service_holds_no_login_but_its_own_and_one_that_reads(stack):
    pid = json.loads((stack.root / ".align/services.json").read_text())["search"]["pid"]
    values = " ".join(psutil.Process(pid).environ().values())
    has = {name: stack.login_of(name).partition(":")[2] in values for name in ("login", "login_search", "login_reader")}
    assert has == {"login": False, "login_search": True, "login_reader": True}
    assert [name for name, secret in SECRETS.items() if secret in values] == []


def test_the_login_of_the_search_service_reads_what_it_serves_and_moves_nothing(stack, tmp_path, monkeypatch):
    def log_in(name):
        user, _, password = stack.login_of(name).partition(":")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        return tracker.registry

    tracker = Tracker(stack.mlflow)
    registry = log_in("login")
    run = tracker.start_run("served", "one")
    tracker.log_text(run, "a model", f"{MODEL_ARTIFACT}/MLmodel")
    registry.set_alias(registry.create_version("served", run, MODEL_ARTIFACT, {"a": "b"}), CHAMPION)
    registry = log_in("login_reader")
    version = registry.version_at("served", CHAMPION)
    assert version is not None and version.tags == {"a": "b"}
    assert registry.champion_state("served").champion == version.number
    assert (registry.download(version, MODEL_ARTIFACT, tmp_path) / "MLmodel").read_text() == "a model"
    for change in (
        lambda: registry.set_alias(version, "other"),
        lambda: registry.set_version_tags(version, {"a": "c"}),
        lambda: registry.create_version("served", run, MODEL_ARTIFACT, {}),
        lambda: registry.set_model_tag("served", "key", "value"),
        lambda: tracker.end_run(run),
    ):
        with pytest.raises(RefusedError, match="this login reads, and changes nothing"):
            change()
    registry = log_in("login_search")
    with pytest.raises(RefusedError, match="401"):
        registry.version_at("served", CHAMPION)
    log_in("login")
    tracker.end_run(run)


def test_other_users_of_the_machine_read_no_database(stack):
    stack.ask("/flow_runs/count", {})
    databases = [path for place in (".", ".align/prefect") for path in (stack.root / place).glob("*.db*")]
    assert {"mlflow.db", "prefect.db"} <= {path.name for path in databases}
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in databases} == {
        path.name: "0o600" for path in databases
    }


def contents(root):
    """Name and bytes of every file of the checkout, and all that git has: commits, trees, files, messages."""
    for path in root.rglob("*"):
        if path.is_file() and path.relative_to(root).as_posix() not in (".git/config", ".align/login"):
            yield str(path.relative_to(root)), path.read_bytes()
    git = ["git", "cat-file", "--batch-all-objects", "--batch"]
    yield "git", subprocess.run(git, cwd=root, capture_output=True, check=True).stdout


def assert_no_secrets(root, secrets, *shown):
    found = [
        (name, secret)
        for name, data in [*contents(root), *(("shown", text.encode()) for text in shown)]
        for secret in secrets
        if secret.encode() in data
    ]
    assert found == []


def test_a_run_records_and_shows_no_secret(stack, monkeypatch):
    secrets = [*SECRETS.values(), stack.login.partition(":")[2]]
    address = stack.mlflow.replace("http://", f"http://{stack.login}@")
    monkeypatch.setitem(stack.env, "MLFLOW_TRACKING_URI", address)
    done = stack.align_run("--name", "secrets", "--set", "pretrain.seed=8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "secrets" in {run["info"]["run_name"] for run in stack.mlflow_runs()}  # the address with the login was used

    unavailable = f"http://me:{SECRETS['uri']}@127.0.0.1:9"
    monkeypatch.setitem(stack.env, "MLFLOW_TRACKING_URI", unavailable)
    failed = stack.align_run("--name", "refused", "--set", "pretrain.seed=9")
    assert failed.returncode == 1
    assert "MLflow at http://127.0.0.1:9" in failed.stderr

    assert_no_secrets(stack.root, secrets, done.stdout, done.stderr, failed.stdout, failed.stderr)
    logs = stack.ask("/logs/filter", {"logs": {}, "sort": "TIMESTAMP_DESC"})
    assert any(log["message"] == "pushing to http://127.0.0.1:9" for log in logs)


def test_a_login_in_a_parameter_is_refused_before_it_is_recorded(stack):
    address = f"https://me:{SECRETS['form']}@example.com"
    signed = f"https://bucket.example.com/a.warc.gz?X-Amz-Expires=9&X-Amz-Signature={SECRETS['form']}"
    archives = (address, [address], signed)
    requests = [{"ref": address}, *({"overrides": {"paths.archive": archive}} for archive in archives)]
    given = [("pipeline", {"request": one}) for one in requests] + [("rollback", {"reason": f"see {address}"})]
    for flow, parameters in given:
        with pytest.raises(urllib.error.HTTPError, match="409"):
            stack.click(flow, parameters=parameters)
    done = stack.align_run("--set", f"paths.archive={address}")
    assert done.returncode == 1
    assert "parameter 'paths.archive' holds a login in its address" in done.stderr
    assert "infra/env.example" in done.stderr and len(done.stderr.splitlines()) == 1
    assert_no_secrets(
        stack.root, [SECRETS["form"]], done.stdout, done.stderr, json.dumps(stack.ask("/flow_runs/filter", {}))
    )
