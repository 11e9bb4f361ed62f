"""What people decide about the last run of a gate."""

import subprocess
from pathlib import Path

import pytest

from align.errors import ConfigError, DataError, GateError
from align.formats.acceptances import read_acceptances
from align.validate.validate import git_user
from tests.support.gates import accept_failure, run_gate


def test_a_second_acceptance_replaces_the_first_and_others_stay(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        run_gate(tmp_path, "b", "c")
    for name, reason in (("b", "one"), ("c", "two"), ("b", "three")):
        accept_failure(tmp_path, name, reason)
    assert [(item.expectation, item.reason) for item in read_acceptances(tmp_path)] == [("c", "two"), ("b", "three")]


def test_several_failures_are_accepted_at_once_or_none(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"b: .* \(1 more failed: c\); see .*: align validate --accept b,c --reason"):
        run_gate(tmp_path, "b", "c")
    with pytest.raises(DataError, match=r"--accept bb: no failure of this name in the last run \(failed: b, c\)"):
        accept_failure(tmp_path, "b,bb")
    assert read_acceptances(tmp_path) == ()
    accept_failure(tmp_path, "c,b")
    assert [item.expectation for item in read_acceptances(tmp_path)] == ["c", "b"]
    assert run_gate(tmp_path, "b", "c").num_accepted == 2


@pytest.mark.parametrize(
    ("name", "reason", "by", "error", "message"),
    [
        ("bb", "why", "Ada", DataError, r"--accept bb: no failure of this name in the last run \(failed: b\)"),
        ("a", "why", "Ada", DataError, "no failure of this name"),  # it passed: nothing to accept
        ("b", "  ", "Ada", ConfigError, "say why"),
        ("b", "why", "", ConfigError, "by whom"),
    ],
)
def test_bad_usage_is_one_clear_line(
    tmp_path: Path, name: str, reason: str, by: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    with pytest.raises(error, match=message) as caught:
        accept_failure(tmp_path, name, reason, by)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "accepted.json").exists()


def test_nothing_can_be_accepted_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `align validate` first"):
        accept_failure(tmp_path, "b")


def test_git_names_the_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert git_user() == ""
    subprocess.run(["git", "config", "--global", "user.name", "Ada"], check=True)
    assert git_user() == "Ada"
    subprocess.run(["git", "config", "--global", "user.email", "ada@example.org"], check=True)
    assert git_user() == "Ada <ada@example.org>"
