"""infra/audit.py: it finds a planted secret, and never takes "cannot ask" for "clean"."""

import json
from pathlib import Path

import pytest

from infra import audit


def test_a_planted_secret_is_found_without_a_network(tmp_path: Path) -> None:
    key = "AKIA" + "Z7Q4MB2WKXN5T3RC"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text(f'a = 1\nkey = "{key}"\npassword = "hunter2hunter2"\n')
    (tmp_path / "env.example").write_text("AWS_SECRET_ACCESS_KEY=\nMLFLOW_TRACKING_PASSWORD=\n")
    found = list(audit.secrets_in(tmp_path, ["tests/a.py", "env.example"]))
    assert found == ["tests/a.py:2: AWS Access Key"]


REPORT = {
    "dependencies": [
        {"name": "torch", "skip_reason": "not on the index"},
        {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.10"]}]},
        {"name": "clean", "version": "1", "vulns": []},
    ]
}


@pytest.mark.parametrize(
    ("reports", "secrets", "code", "said"),
    [
        ({"osv": json.dumps(REPORT)}, [], 1, "jinja2 2.4.1: PYSEC-1, fixed in 2.10"),
        ({"pypi": json.dumps({"dependencies": REPORT["dependencies"][2:]})}, [], 0, "none known to pypi in 1 packages"),
        ({"pypi": json.dumps({"dependencies": [{"name": "a", "skip_reason": "404"}]})}, [], 3, "cannot say for 1"),
        ({}, [], 3, "osv and pypi cannot be reached"),
        ({}, ["a:1: key"], 1, "a:1: key"),
    ],
)
def test_exit_codes(
    reports: dict[str, str],
    secrets: list[str],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "secrets_in", lambda root, names: iter(secrets))
    monkeypatch.setattr(audit, "ask", reports.get)
    assert audit.main() == code
    assert said in capsys.readouterr().out
