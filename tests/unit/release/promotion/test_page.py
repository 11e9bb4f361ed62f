"""The page of a decision: self-contained, with every row; foreign text is text."""

from pathlib import Path

import numpy as np

from align.config.promote import PromoteConfig
from align.release.promotion.decision import Compared, Gate, PromotionDecision, table_lines
from align.release.promotion.page import write_page
from align.release.promotion.slices import compared_slices
from align.statistics.paired import difference, of_metrics
from tests.support.params import load_params
from tests.support.rank_pairs import pair

METRIC = "concepts/mean_recall"
HOSTILE = "<script>alert(1)</script> | `x` \u202e"


def decision(compared: Compared | None) -> PromotionDecision:
    gates = (Gate("lineage", HOSTILE, "all", True), Gate("health alarms", "-", "none", None), Gate("b", "", "", False))
    return PromotionDecision(
        outcome="refused", reason=HOSTILE, model="align", candidate=2, what="run 1", champion=1,
        scores={METRIC: (0.5, 0.4)}, gates=gates, compared=compared, confidence=0.95, margin=0.005,
        measured=("version 2: as its run was measured",), sets_digest="d" * 64, num_decided=12,
        at="2026-11-27T12:00:00Z",
    )  # fmt: skip


def test_a_comparison_is_shown_whole(tmp_path: Path) -> None:
    mine, theirs = pair(np.random.default_rng(0))
    one = difference(of_metrics([METRIC], mine, theirs), confidence=0.95)
    slices = compared_slices(load_params().section(PromoteConfig), mine, theirs)
    made = decision(Compared(one, {METRIC: one}, tuple(slices)))
    page = write_page(made, tmp_path).read_text()
    markdown = (tmp_path / "promotion.md").read_text()
    for text in (page, markdown):
        assert all(name in text for name in (METRIC, "classes: class 7", "have decided 12 times before"))
        assert "A smaller one is mostly refused" in text and "\u202e" not in text
    assert "<script" not in page and 'src="data:image/png;base64,' in page
    assert "\\<script\\>" in markdown and "\\| \\`x\\`" in markdown
    assert len({line.count(" | ") for line in markdown.splitlines() if line.startswith("| classes: ")}) == 1
    assert (tmp_path / "promotion.html").read_text() == page
    assert made.as_dict("page")["slices"][0]["name"] == "concepts"


def test_a_first_champion_has_nothing_to_compare(tmp_path: Path) -> None:
    page = write_page(decision(None), tmp_path).read_text()
    assert "There was no champion" in page and "Slices" not in page


def test_the_table_has_a_row_for_each_gate() -> None:
    lines = list(table_lines(decision(None)))
    assert [line.split()[0] for line in lines[1:]] == ["passed", "not", "FAILED"]
    assert "(needed: all)" in lines[1]
