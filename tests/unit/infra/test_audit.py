"""infra/audit.py: it finds a planted secret, and never takes "cannot ask" for "clean"."""

import json
import re
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from infra import audit, licences
from tests.support import ROOT


def test_a_planted_secret_is_found_without_a_network(tmp_path: Path) -> None:
    key = "AKIA" + "Z7Q4MB2WKXN5T3RC"
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text(f'a = 1\nkey = "{key}"\npassword = "hunter2hunter2"\n')
    (tmp_path / "env.example").write_text("AWS_SECRET_ACCESS_KEY=\nMLFLOW_TRACKING_PASSWORD=\n")
    found = list(audit.secrets_in(tmp_path, ["tests/a.py", "env.example"]))
    assert found == ["tests/a.py:2: AWS Access Key"]


def test_the_bill_of_materials_names_what_the_lock_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_installed", {"torch": "2.9.0+cpu", "align-mlops": "1.0"}.get)
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    text = audit.bill_of_materials(lock)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert audit.bill_of_materials(lock) == text and "timestamp" not in text
    bill = json.loads(text)
    assert bill["metadata"]["component"]["name"] == "align-mlops"
    parts = {part["name"]: part for part in bill["components"]}
    pins = dict(re.findall(r"^([^#\s=]+)==(\S+)(?= \\\n)", lock, re.M)) | {"torch": "2.9.0+cpu"}  # on every machine
    assert len(pins) > 200 and pins.items() <= {name: part["version"] for name, part in parts.items()}.items()
    assert len(parts) == len(bill["components"]) <= lock.count("==") + 1
    assert parts["torch"]["purl"] == "pkg:pypi/torch@2.9.0%2Bcpu"
    assert "hashes" not in parts.pop("torch")
    assert all(f"sha256:{each['content']}" in lock for part in parts.values() for each in part["hashes"])


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
    monkeypatch.setattr(audit, "write_text", lambda file, text: None)
    assert audit.main() == code
    assert said in capsys.readouterr().out


def test_the_page_is_that_of_the_lock() -> None:
    found = licences.licences()
    assert [line for name, text in found.items() if (line := licences.problem(name, text))] == []
    assert licences.PAGE.read_text("utf-8") == licences.page(found), "run `make licences`"


def test_every_exception_is_in_use() -> None:
    found = licences.licences()
    for name in licences.ACCEPTED:
        assert name in found and not licences.is_permissive(found[name] or ""), f"{name} needs no exception"
    assert set(licences.BY_HAND) <= set(found)


@pytest.mark.parametrize(
    ("expression", "permissive"),
    [
        ("MIT", True),
        ("Apache-2.0 OR GPL-2.0-or-later", True),
        ("Apache-2.0 AND MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", False),
        ("AGPL-3.0-only", False),
        ("SSPL-1.0", False),
        ("GPL-2.0-only WITH GCC-exception-2.0", False),
    ],
)
def test_one_permissive_alternative_is_enough(expression: str, permissive: bool) -> None:
    assert licences.is_permissive(expression) is permissive


def test_what_is_not_permissive_or_not_known_is_refused() -> None:
    assert "not permissive" in (licences.problem("nudenet", "AGPL-3.0-only") or "")
    assert "no licence" in (licences.problem("mystery", None) or "")


def test_everything_locked_has_a_hash_and_no_address() -> None:
    for lock in (licences.LOCK, *sorted((licences.ROOT / "infra/locks").glob("*.txt"))):
        text = lock.read_text("utf-8")
        for line in text.splitlines():
            assert re.fullmatch(r"#.*|[a-z0-9._-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
