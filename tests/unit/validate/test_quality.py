"""Verdicts: what stops, what people may accept, and what the page says. Great Expectations has no part in it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from align.errors import ConfigError, DataError, FormatError, GateError
from align.formats.verdict import require_passed
from align.validate.quality import (
    QualityReport,
    accept,
    git_user,
    judge,
    publish,
    read_accepted,
    read_report,
    render,
    summary,
)
from tests.support import ROOT
from tests.support.small_data import write_verdict

DATA, OTHER = "a" * 64, "b" * 64


def outcome(name: str, *, passed: bool) -> dict[str, Any]:
    return {
        "name": name, "what": f"what {name} says", "expectation": "expect_this()", "observed": "1", "threshold": "0",
        "passed": passed,
    }  # fmt: skip


def judged(policy: Path, *failed: str, data: str = DATA) -> QualityReport:
    """A gate of three expectations, a, b and c."""
    outcomes = [outcome(name, passed=name not in failed) for name in ("a", "b", "c")]
    return judge(outcomes, data=data, accepted=read_accepted(policy), prefix="quality", metrics={"quality/x": 7})


def run(root: Path, *failed: str, data: str = DATA) -> QualityReport:
    report = judged(root, *failed, data=data)
    publish(report, root / "quality", "Data quality", [])
    return report


def accept_it(root: Path, name: str, reason: str = "known and harmless", by: str = "Ada") -> None:
    accept(name, reason, by, "2026-01-31", reports=[root / "none", root / "quality"], policy=root)


def test_a_failure_blocks_and_is_written_first(tmp_path: Path) -> None:
    with pytest.raises(GateError, match=r"quality gate: b: what b says: observed 1, expected 0 \(1 more failed\)"):
        run(tmp_path, "b", "c")
    with pytest.raises(GateError, match="b: what b says: observed 1, expected 0"):
        require_passed(tmp_path / "quality")
    written = read_report(tmp_path / "quality")
    assert written is not None and not written.passed
    metrics = json.loads((tmp_path / "quality" / "metrics.json").read_text())
    assert metrics == {
        "quality/num_expectations": 3,
        "quality/num_failed": 2,
        "quality/num_accepted": 0,
        "quality/x": 7,
    }


def test_an_acceptance_holds_by_name_and_for_its_data_alone(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        run(tmp_path, "b")
    accept_it(tmp_path, "b")
    report = run(tmp_path, "b")
    assert report.passed and summary(report) == "passed: 2 of 3 expectations hold, 1 accepted by people"
    assert report.metrics["quality/num_accepted"] == 1
    require_passed(tmp_path / "quality", DATA)
    with pytest.raises(GateError, match="c: what c says"):  # another failure of the same data
        run(tmp_path, "b", "c")
    with pytest.raises(GateError, match="b: what b says"):  # the same failure of other data
        run(tmp_path, "b", data=OTHER)


def test_an_acceptance_of_what_passes_now_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        run(tmp_path, "b")
    accept_it(tmp_path, "b")
    report = run(tmp_path)
    assert report.metrics["quality/num_accepted"] == 0
    assert "accepted by" not in (tmp_path / "quality" / "report.html").read_text()


def test_the_page_shows_who_accepted_what_and_why(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        run(tmp_path, "b")
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "What failed" in page and "align validate --accept b" in page
    accept_it(tmp_path, "b", "icons are <small>", "Ada")
    run(tmp_path, "b")
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "What failed" not in page
    assert "icons are &lt;small&gt;" in page and "<td>Ada</td>" in page and "2026-01-31" in page
    assert "<td class=warn>accepted</td>" in page


def test_a_verdict_does_not_change_when_a_failure_is_accepted_or_reworded(tmp_path: Path) -> None:
    """So an acceptance makes nothing stale that a pass has not."""
    run(tmp_path)
    first = (tmp_path / "quality" / "verdict.json").read_bytes()
    with pytest.raises(GateError):
        run(tmp_path, "b")
    accept_it(tmp_path, "b")
    run(tmp_path, "b")
    assert (tmp_path / "quality" / "verdict.json").read_bytes() == first


def test_equal_verdicts_are_equal_bytes(tmp_path: Path) -> None:
    run(tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()}
    run(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "quality").iterdir()} == first


def test_a_second_acceptance_replaces_the_first_and_others_stay(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        run(tmp_path, "b", "c")
    for name, reason in (("b", "one"), ("c", "two"), ("b", "three")):
        accept_it(tmp_path, name, reason)
    assert [(item.expectation, item.reason) for item in read_accepted(tmp_path)] == [("c", "two"), ("b", "three")]


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
        run(tmp_path, "b")
    with pytest.raises(error, match=message) as caught:
        accept_it(tmp_path, name, reason, by)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "accepted.json").exists()


def test_nothing_can_be_accepted_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run `align validate` first"):
        accept_it(tmp_path, "b")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "accepted.json").write_text('{"schema_version": 1, "accepted": [{"expectation": "b"}]}')
    with pytest.raises(FormatError, match=r"accepted\.json: accepted\.0\.data: "):
        read_accepted(tmp_path)
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "report.json").write_text('{"passed": true}')
    with pytest.raises(FormatError, match="not a report of this version"):
        read_report(tmp_path / "quality")


def test_the_committed_acceptances_are_readable() -> None:
    read_accepted(ROOT / "data" / "policy")


@pytest.mark.parametrize(("folder", "command"), [("quality", "validate"), ("quality_shards", "validate_shards")])
def test_no_verdict_and_one_about_other_data_are_refused(tmp_path: Path, folder: str, command: str) -> None:
    with pytest.raises(DataError, match=f"run `align {command}` first"):
        require_passed(tmp_path / folder)
    write_verdict(tmp_path / folder, passed=True, data=DATA)
    require_passed(tmp_path / folder, DATA)
    with pytest.raises(DataError, match=f"about other data; run `align {command}` again"):
        require_passed(tmp_path / folder, OTHER)


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


def test_text_of_the_verdict_is_escaped(tmp_path: Path) -> None:
    rows = [outcome("a", passed=False) | {"observed": "<script>"}]
    report = judge(rows, data=DATA, accepted=(), prefix="quality", metrics={})
    assert "<script>" not in render(report, "t", [])
