"""The environment of flows, and the servers of a checkout: they ask for its login, and keep to it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest

from align import local_stack
from align.errors import ServiceError
from align.local_stack import (
    SERVICES_FILE,
    created,
    flow_environment,
    has_accelerator,
    leave_to_runs,
    login,
    prefect_for_a_run,
    running_services,
    save,
    take_over,
)
from tests.support.mlflow_server import free_port

LOGINS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")


@pytest.fixture(autouse=True)
def _no_server_of_the_user():
    """Nor that of a test, for the tests after it: a run puts its server into the environment of its process."""
    with patch.dict(os.environ):
        for name in (*LOGINS, "PREFECT_API_URL", "PREFECT_HOME"):
            os.environ.pop(name, None)
        yield


def test_a_server_asks_for_the_login_and_keeps_its_state_in_the_checkout(tmp_path):
    env = flow_environment(tmp_path)
    assert [env[name] for name in LOGINS] == [login(tmp_path)] * 2
    user, _, password = login(tmp_path).partition(":")
    assert user == "align" and len(password) >= 32
    assert Path(env["PREFECT_HOME"]).is_relative_to(tmp_path) and Path(env["PREFECT_HOME"]).is_dir()
    assert "PREFECT_API_URL" not in env and env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_another_server_s_login_is_the_user_s(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:mine")
    env = flow_environment(tmp_path)
    assert env["PREFECT_API_AUTH_STRING"] == "me:mine" and "PREFECT_SERVER_API_AUTH_STRING" not in env


def test_a_clock_that_jumps_loses_no_service(tmp_path, monkeypatch):
    """On Linux the date of a process is computed from the clock of today."""
    process = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        listed = {"pid": process.pid, "created": created(process.pid)}
        (tmp_path / ".align").mkdir()
        (tmp_path / SERVICES_FILE).write_text(json.dumps({"mlflow": listed, "other": listed | {"created": "x 1"}}))
        now = psutil.boot_time()
        if hasattr(psutil, "_pslinux"):
            monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: now + 3600)
        assert running_services(tmp_path) == {"mlflow": listed}
    finally:
        process.kill()
        process.wait()
    assert running_services(tmp_path) == {}


def test_a_copied_checkout_leaves_the_first_one_s_servers_alone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    (first / ".align").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=first) as process:
        service = {"pid": process.pid, "created": created(process.pid)}
        (first / SERVICES_FILE).write_text(json.dumps({"mlflow": service}))
        shutil.copytree(first, second)
        assert running_services(first) == {"mlflow": service}
        assert running_services(second) == {}
        first.rename(tmp_path / "moved")
        assert running_services(tmp_path / "moved") == {"mlflow": service}
        process.kill()
    assert running_services(tmp_path / "moved") == {}


@pytest.mark.parametrize(("files", "environment", "found"), [
    ([], {}, False),
    (["nvidia0", "nvidiactl"], {}, True),
    (["nvidiactl"], {}, False),  # a driver without a GPU
    (["kfd"], {}, True),
    (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "1"}, True),
    (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
    (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
    (["kfd"], {"HIP_VISIBLE_DEVICES": "-1"}, False),
])  # fmt: skip
def test_an_accelerator_is_found(tmp_path, files, environment, found):
    for name in files:
        (tmp_path / name).touch()
    assert has_accelerator(tmp_path, environment) is found


#: A server outlives the program that starts it, here with the program.
OUTLIVES = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


@pytest.fixture(name="root")
def _root(tmp_path, monkeypatch):
    """A checkout whose servers only sleep."""

    def sleeps(root, name, url, env):
        made = local_stack.start(root, name, [sys.executable, "-c", "import time; time.sleep(60)"], env)
        return made | {"url": url}

    monkeypatch.setattr(local_stack, "start_server", sleeps)
    for name in ("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "ALIGN_ROOT"):
        monkeypatch.setenv(name, "")  # set by what is tested
    yield tmp_path
    for name in ("PREFECT_API_URL", *LOGINS):
        os.environ.pop(name, None)
    local_stack.stop(*(psutil.Process(one["pid"]) for one in running_services(tmp_path).values()))


@OUTLIVES
def test_the_last_run_ends_the_server_that_a_run_has_started(root):
    with prefect_for_a_run(root):
        [first] = running_services(root).values()
        assert os.environ["PREFECT_API_URL"] == f"{first['url']}/api"
        del os.environ["PREFECT_API_URL"]
        with prefect_for_a_run(root):
            assert list(running_services(root).values()) == [first]
        assert list(running_services(root).values()) == [first]
    assert running_services(root) == {}


@OUTLIVES
def test_a_server_stays_that_somebody_keeps_or_make_up_takes_over(root):
    with prefect_for_a_run(root, keep=True):
        pass
    [kept] = running_services(root).values()
    with prefect_for_a_run(root):
        services = running_services(root)
        take_over(services)
        save(root, services)
    assert running_services(root)["prefect"]["pid"] == kept["pid"]


@OUTLIVES
def test_make_down_leaves_the_server_to_a_run_that_uses_it(root):
    with prefect_for_a_run(root, keep=True):
        services = running_services(root)
        take_over(services)
        assert leave_to_runs(root, services)
    assert not leave_to_runs(root, running_services(root))
    del os.environ["PREFECT_API_URL"]
    with prefect_for_a_run(root):
        pass
    assert running_services(root) == {}


@OUTLIVES
def test_a_run_takes_another_port_unless_one_is_chosen(root, monkeypatch):
    claim, taken = free_port()
    monkeypatch.setitem(local_stack.PORTS, "prefect", ("ALIGN_PREFECT_PORT", taken, "/api/health"))
    monkeypatch.setattr(local_stack, "_is_free", lambda number: number != taken)
    with prefect_for_a_run(root):
        assert not running_services(root)["prefect"]["url"].endswith(f":{taken}")
    del os.environ["PREFECT_API_URL"]
    monkeypatch.setenv("ALIGN_PREFECT_PORT", str(taken))
    with pytest.raises(ServiceError, match=f"prefect: port {taken} is taken"), prefect_for_a_run(root):
        pass
    claim.close()
