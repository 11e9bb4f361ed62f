"""What stops at a gate, what people may accept, and what is written. Great Expectations has no part in it."""

import json
import re

import pytest

from align.errors import FormatError, GateError
from align.formats.verdict import require_passed
from align.validate import report as module
from align.validate.page import gate_page
from align.validate.report import judge, read_report, summary
from tests.support.gates import DATA, OTHER_DATA, accept_failure, outcome, run_gate


def test_a_failure_blocks_and_is_written_first(tmp_path):
    with pytest.raises(GateError, match=r"quality gate: b: what b says: observed 1, expected 0 \(1 more failed: c\)"):
        run_gate(tmp_path, "b", "c")
    with pytest.raises(GateError, match="b: what b says: observed 1, expected 0"):
        require_passed(tmp_path / "quality", DATA, tmp_path)
    written = read_report(tmp_path / "quality")
    assert written is not None and not written.passed
    metrics = json.loads((tmp_path / "quality" / "metrics.json").read_text())
    assert metrics == {
        "quality/num_expectations": 3, "quality/num_failed": 2, "quality/num_accepted": 0, "quality/x": 7,
    }  # fmt: skip


def test_an_acceptance_holds_by_name_and_for_its_data_alone(tmp_path):
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    accept_failure(tmp_path, "b")
    report = run_gate(tmp_path, "b")
    assert report.passed and summary(report) == "passed: 2 of 3 expectations hold, 1 accepted by people"
    assert report.metrics["quality/num_accepted"] == 1
    require_passed(tmp_path / "quality", DATA, tmp_path)
    with pytest.raises(GateError, match="c: what c says"):  # another failure of the same data
        run_gate(tmp_path, "b", "c")
    said = r"b: what b says: .*\(accepted for other data: b on 2026-01-31 by Ada, where 1 was observed\)$"
    with pytest.raises(GateError, match=said):  # the same failure of other data
        run_gate(tmp_path, "b", data=OTHER_DATA)
    assert "b on 2026-01-31 by Ada" in (tmp_path / "quality/report.html").read_text().partition("All expectations")[0]
    with pytest.raises(GateError, match=r'--reason "why"$'):  # c was never accepted
        run_gate(tmp_path, "c", data=OTHER_DATA)


def test_the_page_draws_values_in_their_bands_and_folds_what_passed():
    outcomes = [outcome("a", passed=True), outcome("zero", passed=True).model_copy(
        update={"value": 0.0, "low": 0.0, "high": 0.4}
    )]  # fmt: skip
    for name, value, passed in (("inside", 0.3, True), ("above", 0.8, False), ("below", -0.2, False)):
        measured = {"value": value, "low": 0.0, "high": 0.4}
        outcomes.append(outcome(name, passed=passed).model_copy(update=measured))
    report = judge(outcomes, data=DATA, accepted=[], prefix="quality", metrics={})
    page = gate_page(report, "Data quality", [])
    failed, _, rest = page.partition("All expectations")
    shown, _, folded = rest.partition("<details><summary>2 more passed</summary>")
    assert [name in part for part in (failed, shown, folded) for name in ("above", "below", "inside")] == [
        True, True, False, False, False, True, False, False, False,
    ]  # fmt: skip
    assert "what a says" in folded and "what zero says" in folded and "what a says" not in shown
    bands = [
        tuple(float(number) for number in re.findall(r' (?:x|width|cx)="([\d.]+)"', band.partition("</rect>")[0]))
        for band in re.findall("<rect class=within.*?</svg>", failed + shown)
    ]
    assert bands == [(6, 54, 114), (42, 72, 6), (6, 108, 87)]  # left end and width of the band, place of the dot
    assert (failed + shown).count("var(--bad)") - page.partition("</style>")[0].count("var(--bad)") == 2


def test_an_acceptance_of_what_passes_now_is_not_shown(tmp_path):
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    accept_failure(tmp_path, "b")
    report = run_gate(tmp_path)
    assert report.metrics["quality/num_accepted"] == 0
    assert "accepted by" not in (tmp_path / "quality" / "report.html").read_text()


def test_a_verdict_does_not_change_when_a_failure_is_accepted_or_reworded(tmp_path):
    """So an acceptance makes nothing stale that a pass has not."""
    run_gate(tmp_path)
    first = (tmp_path / "quality" / "verdict.json").read_bytes()
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    accept_failure(tmp_path, "b")
    run_gate(tmp_path, "b")
    assert (tmp_path / "quality" / "verdict.json").read_bytes() == first


def test_the_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    run_gate(tmp_path)
    folder = tmp_path / "quality"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "distributions.png").write_bytes(b"of an earlier run")

    def full(*_):
        raise OSError("disk is full")

    with monkeypatch.context() as patched, pytest.raises(OSError, match=r"No space left on device: '.*quality'"):
        patched.setattr(module, "write_verdict", full)
        run_gate(tmp_path, data=OTHER_DATA)
    assert {path.name for path in folder.iterdir()} == {*first, "distributions.png"}
    assert (folder / "report.json").read_bytes() == first["report.json"]
    run_gate(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_broken_report_is_named(tmp_path):
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "report.json").write_text('{"passed": true}')
    with pytest.raises(FormatError, match="not a report of this version"):
        read_report(tmp_path / "quality")
