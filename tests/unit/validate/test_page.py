"""What the page of a gate shows."""

from pathlib import Path

import pytest

from align.errors import GateError
from align.validate.page import gate_page
from align.validate.report import judge
from tests.support.gates import DATA, accept_failure, outcome, run_gate


def test_the_page_shows_who_accepted_what_and_why(tmp_path: Path) -> None:
    with pytest.raises(GateError):
        run_gate(tmp_path, "b")
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "What failed" in page and "align validate --accept b" in page
    accept_failure(tmp_path, "b", "icons are <small>", "Ada")
    run_gate(tmp_path, "b")
    page = (tmp_path / "quality" / "report.html").read_text()
    assert "What failed" not in page
    assert "icons are &lt;small&gt;" in page and "<td>Ada</td>" in page and "2026-01-31" in page
    assert "<td class=warn>accepted</td>" in page


def test_text_of_the_verdict_is_escaped(tmp_path: Path) -> None:
    rows = [outcome("a", passed=False, observed="<script>")]
    report = judge(rows, data=DATA, accepted=(), prefix="quality", metrics={})
    assert "<script>" not in gate_page(report, "t", [])
