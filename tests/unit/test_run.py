"""The environment of flows: a server that a run starts for itself asks for the login, and keeps to the checkout."""

from pathlib import Path

import pytest

from align.run import flow_environment, login

LOGINS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LOGINS, "PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_temporary_server_asks_for_the_login_and_keeps_its_state_in_the_checkout(tmp_path: Path) -> None:
    env = flow_environment(tmp_path)
    assert [env[name] for name in LOGINS] == [login(tmp_path)] * 2
    user, _, password = login(tmp_path).partition(":")
    assert user == "align" and len(password) >= 32
    assert Path(env["PREFECT_HOME"]).is_relative_to(tmp_path) and Path(env["PREFECT_HOME"]).is_dir()
    assert "PREFECT_API_URL" not in env and env["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_another_server_s_login_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:mine")
    env = flow_environment(tmp_path)
    assert env["PREFECT_API_AUTH_STRING"] == "me:mine" and "PREFECT_SERVER_API_AUTH_STRING" not in env
