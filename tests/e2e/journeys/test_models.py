"""The rule of docs/models.md, added as the page says, in a small clone of this checkout that has run."""

import json

import pytest

from flows.checkout.run_branch import record
from tests.support import small_checkout
from tests.support.dvc_projects import shell
from tests.support.journeys import travel


@pytest.mark.journeys
def test_a_rule_of_ones_own_in_the_funnel_and_in_what_left(folder):
    clone = small_checkout.write(folder / "align")
    ours = {"PYTHONPATH": str(clone)}
    shell(clone, "dvc repro validate", ours)
    record(clone, "demo", "before the rule")
    before = funnel(clone)
    said = travel(clone, "models", "rule", ours)
    after = funnel(clone)
    assert set(after) - set(before) == {"text_credit"} and after["text_credit"]["num_first"] > 0
    assert after["text_credit"]["drops_where"] == "text LIKE 'Clipart by %'"
    assert f"{after['text_credit']['num_first']} text_credit" in said
    assert "Running stage 'filter'" in said and "Running stage 'ingest'" not in said
    assert "left (kept before, not now): " in said
    assert "Clipart by Nicu Buculei" in (clone / "reports/filter/report.html").read_text()


def funnel(clone):
    """Reason -> its row, of the filter's report."""
    report = json.loads((clone / "reports/filter/report.json").read_text())
    return {row["reason"]: row for row in report["funnel"]}
