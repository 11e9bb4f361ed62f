"""Promotion: what each gate refuses, what people approve, what changes meanwhile, and the way back.

Over a registry in memory, and by `make test-kill` in a real MLflow, too.
"""

import fcntl
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from align.config.release import PromoteConfig
from align.errors import DataError, GateError
from align.release.aliases import moves, rollback
from align.release.aliases.champion import make_champion, take_back
from align.release.promotion import gates, judge, promote
from align.release.promotion.decision import Compared, Gate, PromotionDecision, table_lines
from align.release.promotion.judge import Judged
from align.release.promotion.page import write_page
from align.release.promotion.promote import Approval, reject
from align.release.promotion.slices import compared_slices
from align.services.tracking.tracker import Tracker
from align.statistics.paired import difference, of_metrics
from tests.support.empty_versions import version
from tests.support.memory_mlflow import MemoryTracker
from tests.support.params import load_params
from tests.support.rank_pairs import pair
from tests.support.registered import RECALL, ranks

ANN = Approval("Ann", "reads signs")


@dataclass(frozen=True)
class Model:
    """A registered model, whose files are empty."""

    root: Path
    tracker: Tracker

    def candidate(self, measured):
        return version(self.tracker, self.root, measured)

    def promote(self, *more, number=None, approval=None, expect_champion=None):
        params = load_params(overrides=[f"promote.metrics=[{RECALL}]", "promote.margin=0.02", *more])
        return promote.promote(params, self.tracker, number, approval, expect_champion)[0]

    def aliases(self):
        return self.tracker.registry.aliases("align")

    def history(self):
        return [(move.kind, move.before, move.to) for move in self.tracker.registry.champion_state("align").moves]


@pytest.fixture(params=["memory", pytest.param("mlflow", marks=pytest.mark.kill)])
def model(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", not Path("broken").exists())
    )
    in_memory = request.param == "memory"
    return Model(
        tmp_path,
        MemoryTracker(tmp_path / "mlflow") if in_memory else Tracker(request.getfixturevalue("empty_mlflow")(tmp_path)),
    )


def test_promotion_and_rollback_over_three_champions(model):
    with pytest.raises(DataError, match="no version with alias 'candidate'"):
        model.promote()
    model.candidate(0.5)
    decision = model.promote()
    assert (decision.outcome, decision.candidate, decision.champion) == ("promoted", 1, None)
    assert model.promote().outcome == "unchanged"
    model.candidate(0.53)  # better by three points, of which two are the margin: that may be chance
    refused = model.promote()
    assert refused.outcome == "refused"
    assert refused.reason.startswith("better than version 1: +3.0 points, 95% lower bound +")
    assert refused.reason.endswith("needed: bound above +2.0")
    assert model.aliases() == {"candidate": 2, "champion": 1}
    model.candidate(0.6)
    assert model.promote().outcome == "promoted"
    assert model.aliases() == {"candidate": 3, "champion": 3}
    model.candidate(0.7)
    assert model.promote().scores == {RECALL: (0.7, 0.6)}
    assert model.aliases() == {"candidate": 4, "champion": 4}

    done = take_back(model.tracker, "align", "slow on phones")
    assert (done.to, done.before) == (3, 4)
    assert model.aliases() == {"candidate": 4, "champion": 3}
    again = model.promote()
    assert again.outcome == "refused"
    assert again.reason.startswith("rolled back: at 20") and "slow on phones" in again.reason
    assert take_back(model.tracker, "align", "why").to == 1
    assert model.aliases() == {"candidate": 4, "champion": 1}
    with pytest.raises(DataError, match="no champion before 1"):
        take_back(model.tracker, "align", "why")


def test_what_a_promotion_would_say_is_told_without_measuring_or_moving_anything(model, monkeypatch):
    def outlook(made):
        return judge.outlook(load_params(overrides=[f"promote.metrics=[{RECALL}]"]), model.tracker, made)

    monkeypatch.setattr(judge, "evidence", None)
    monkeypatch.setattr(type(model.tracker), "model_files", None)
    first = model.candidate(0.5)
    told = "there is no champion; health alarms: no training told this MLflow; a promotion now fails no gate but"
    assert outlook(first).startswith(told)
    make_champion(model.tracker, first, replaces=None, why="first", figures={})
    assert outlook(first) == "version 1 already is the champion"
    worse = model.candidate(0.45)
    trained_with_alarms(model, worse)
    said = outlook(worse)
    assert said.startswith("worse than champion 1: −5.0 points, 95% lower bound −")
    assert "health alarms: finetune ended with effective rank out of bounds; a promotion now would be refused" in said
    assert model.aliases() == {"champion": 1, "candidate": 2}
    assert "promote.metrics names the set 'sketches'" in judge.outlook(
        load_params(overrides=["promote.metrics=[sketches/image_to_text/recall@1]"]), model.tracker, worse
    )


def test_repeated_rollbacks_end_though_a_version_was_the_champion_twice(model, monkeypatch, capsys):
    monkeypatch.setattr(gates, "better", lambda *_: Gate("better", "", "", True))  # else no two replace each other
    monkeypatch.setattr(rollback, "require_store", lambda: None)
    monkeypatch.setattr(rollback, "Tracker", lambda: model.tracker)
    for _ in range(2):
        model.candidate(0.5)
    with pytest.raises(DataError, match="has no version with alias 'champion'; there is nothing to roll back"):
        rollback.main(load_params(), Namespace(why="slow"))
    for number in (1, 2, 1):
        assert model.promote(number=number).outcome == "promoted"
    assert model.aliases() == {"candidate": 2, "champion": 1}
    rollback.main(load_params(), Namespace(why="slow"))
    assert capsys.readouterr().out.strip() == (
        "align version 2 is the champion again; no champion before it is left; 1 was rolled back: slow"
    )
    assert model.aliases() == {"candidate": 2, "champion": 2}
    with pytest.raises(DataError, match="no champion before 2 is left: the others were rolled back"):
        rollback.main(load_params(), Namespace(why="slow"))


def test_a_candidate_near_chance_is_refused_even_without_a_champion(model):
    model.candidate(0.3)
    assert model.promote().reason.startswith(f"above chance: {RECALL}: ")
    assert "; what lowers the bar: promote.min_times_chance 2." in model.promote().reason
    assert model.aliases() == {"candidate": 1}
    for metric, named in (("sketches/image_to_text/recall@1", "'sketches'"), ("concepts/knn/accuracy", "knn")):
        with pytest.raises(DataError, match=named):
            model.promote(f"promote.metrics=[{metric}]")


def test_another_set_of_today_must_be_here_to_measure_the_champion(model):
    model.candidate(0.5)
    model.promote()
    model.candidate(ranks(0.7, {"concepts": "e" * 64}))
    with pytest.raises(DataError, match="version 1 has to be measured on the set 'concepts' of today, which is not he"):
        model.promote()
    assert model.aliases() == {"candidate": 2, "champion": 1}


def worse_from_texts():
    """Better where images are asked, which the metric counts, and worse where texts are."""
    better, worse = ranks(0.7).ranked, ranks(0.1).ranked
    of_texts = ("concepts", "text_to_image")
    return replace(ranks(0.7), ranked=better | {of_texts: worse[of_texts]})


def tagged(**tags):
    return lambda model, made: model.tracker.registry.set_version_tags(
        made, {f"align.{name}": value for name, value in tags.items()}
    )


def trained_with_alarms(model, made):
    model.tracker.log_metrics(made.run_id, {"finetune/train/alarms": 1.0, "finetune/train/alarm/effective rank": 1.0})


def edited(model, made):
    (model.root / "edited").mkdir()
    (model.root / "edited" / "MLmodel").write_text("flavors: {other: {}}")
    model.tracker.log_folder(made.run_id, model.root / "edited", "model")


def broken(model, made):
    (model.root / "broken").touch()


def good(model, made): ...


@pytest.mark.parametrize(("gate", "champion", "candidate", "change"), [
    (None, 0.5, 0.7, good),
    ("lineage", 0.5, 0.7, tagged(data_digest="")),
    ("data verdict", 0.5, 0.7, tagged(quality="failed")),
    ("rolled back", 0.5, 0.7, tagged(rolled_back_at="2026-11-01T12:00:00Z")),
    ("health alarms", 0.5, 0.7, trained_with_alarms),
    (f"above chance: {RECALL}", 0.1, 0.3, good),
    ("better than version 1", 0.5, 0.52, good),
    ("no slice worse", 0.5, worse_from_texts(), good),
    ("registered bytes", 0.5, 0.7, edited),
    ("smoke prediction", 0.5, 0.7, broken),
])  # fmt: skip
def test_each_gate_alone_refuses(model, gate, champion, candidate, change):
    make_champion(model.tracker, model.candidate(champion), replaces=None, why="first", figures={})
    made = model.candidate(candidate)
    change(model, made)
    decision = model.promote()
    assert [row.name for row in decision.gates if row.passed is False] == ([gate] if gate else [])
    assert decision.outcome == ("refused" if gate else "promoted")
    assert model.aliases() == {"candidate": 2} | ({"champion": 1} if gate else {"champion": 2})
    tags = model.tracker.registry.versions("align")[1].tags
    assert tags.get("align.refused_because") == (decision.reason if gate else None)
    assert decision.reason.startswith(f"{gate}: " if gate else f"mean of {RECALL} is 70.0%, the champion's")


def test_the_aliases_move_under_the_lock(model, monkeypatch):
    model.candidate(0.5)
    make, free = promote.make_champion, []

    def move(*values, **named):
        with moves.LOCK.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free.append("while they move")
            except BlockingIOError:
                free.append("not")
        make(*values, **named)  # type: ignore[arg-type] # as it is called

    monkeypatch.setattr(promote, "make_champion", move)
    assert model.promote().outcome == "promoted" and free == ["not"]


@pytest.mark.parametrize("approval", [None, ANN])
def test_where_a_person_has_to_approve_the_gates_alone_move_nothing(model, approval):
    model.candidate(0.5)
    decision = model.promote("promote.approval=true", approval=approval)
    assert decision.outcome == ("promoted" if approval else "unapproved")
    assert model.history() == ([("promoted", None, 1)] if approval else [])
    model.candidate(0.3)
    assert model.promote("promote.approval=true", approval=approval).outcome == "refused"  # nobody's word is a gate
    assert model.aliases() == {"candidate": 2} | ({"champion": 1} if approval else {})


def test_a_rejection_moves_nothing_and_is_kept(model):
    make_champion(model.tracker, model.candidate(0.5), replaces=None, why="first", figures={})
    reject(model.tracker, model.candidate(0.7), replace(ANN, is_rejection=True))
    assert model.aliases() == {"candidate": 2, "champion": 1}
    assert model.history() == [("promoted", None, 1), ("rejected", 1, 1)]


def judged_while(model, monkeypatch, change):
    """Lets something happen while a version is judged for the first time; returns what was judged, in order."""
    judged, judge = list[Judged](), promote.judge

    def slow(*values):
        judged.append(judge(*values))  # type: ignore[arg-type] # as it is called
        if len(judged) == 1:
            change()
        return judged[-1]

    monkeypatch.setattr(promote, "judge", slow)
    return judged


def test_a_version_is_judged_again_if_the_champion_changes_meanwhile(model, monkeypatch):
    make_champion(model.tracker, model.candidate(0.4), replaces=None, why="first", figures={})
    better, asked = model.candidate(0.7), model.candidate(0.6)
    judged = judged_while(
        model, monkeypatch, lambda: make_champion(model.tracker, better, replaces=1, why="better", figures={})
    )
    decision = model.promote()
    assert [(each.candidate.number, each.decision.champion) for each in judged] == [(3, 1), (3, 2)]
    assert [each.decision.outcome for each in judged] == ["promoted", "refused"]
    assert (decision.outcome, model.aliases()) == ("refused", {"candidate": 3, "champion": 2})
    assert "align.refused_at" in model.tracker.registry.versions("align")[asked.number - 1].tags


def test_a_version_that_is_taken_back_meanwhile_is_judged_again(model, monkeypatch):
    first, made = model.candidate(0.5), model.candidate(0.7)
    make_champion(model.tracker, first, replaces=None, why="first", figures={})

    def there_and_back():
        make_champion(model.tracker, made, replaces=1, why="better", figures={})
        take_back(model.tracker, "align", "slow")

    judged = judged_while(model, monkeypatch, there_and_back)
    assert model.promote().reason.startswith("rolled back: ")
    assert len(judged) == 2 and model.aliases() == {"candidate": 2, "champion": 1}


def test_a_promotion_ends_if_the_champion_is_not_the_expected_one(model, monkeypatch):
    better, asked = model.candidate(0.6), model.candidate(0.7)
    with pytest.raises(GateError, match="the champion was version 2 when the promotion was judged, and now is none"):
        model.promote(approval=ANN, expect_champion=2)
    judged = judged_while(
        model, monkeypatch, lambda: make_champion(model.tracker, better, replaces=None, why="better", figures={})
    )
    for num_judged in (1, 1):  # the second time it is not even judged
        with pytest.raises(GateError, match="version 2 is not promoted: the champion was none when the promotion was"):
            model.promote(number=asked.number, approval=ANN, expect_champion=0)
        assert len(judged) == num_judged
    assert model.history() == [("promoted", None, 1)]
    assert model.promote(approval=ANN, expect_champion=1).outcome == "promoted"


METRIC = "concepts/mean_recall"
HOSTILE = "<script>alert(1)</script> | `x` \u202e"


def decision(compared):
    gates = (Gate("lineage", HOSTILE, "all", True), Gate("health alarms", "-", "none", None), Gate("b", "", "", False))
    return PromotionDecision(
        outcome="refused", reason=HOSTILE, model="align", candidate=2, what="run 1", champion=1,
        scores={METRIC: (0.5, 0.4)}, gates=gates, compared=compared, confidence=0.95, margin=0.005,
        measured=("version 2: as its run was measured",), sets_digest="d" * 64, num_decided=12,
        at="2026-11-27T12:00:00Z",
    )  # fmt: skip


def test_a_comparison_is_shown_whole(tmp_path):
    mine, theirs = pair(np.random.default_rng(0))
    one = difference(of_metrics([METRIC], mine, theirs), confidence=0.95)
    slices = compared_slices(load_params().section(PromoteConfig), mine, theirs)
    made = decision(Compared(one, {METRIC: one}, tuple(slices)))
    page = write_page(made, tmp_path).read_text()
    markdown = (tmp_path / "promotion.md").read_text()
    for text in (page, markdown):
        assert all(name in text for name in (METRIC, "classes: class 7", "have decided 12 times before"))
        assert "A smaller one is mostly refused" in text and "\u202e" not in text
    assert "<script" not in page and "dashed: the margin</text>" in page
    assert "\\<script\\>" in markdown and "\\| \\`x\\`" in markdown
    assert len({line.count(" | ") for line in markdown.splitlines() if "| classes: " in line}) == 1
    assert (tmp_path / "promotion.html").read_text() == page
    assert made.as_dict("page")["slices"][0]["name"] == "concepts"


def test_a_first_champion_has_nothing_to_compare(tmp_path):
    page = write_page(decision(None), tmp_path).read_text()
    assert "There was no champion" in page and "Slices" not in page


def test_the_table_has_a_row_for_each_gate():
    lines = list(table_lines(decision(None)))
    assert [line.split()[0] for line in lines[1:]] == ["passed", "not", "FAILED"]
    assert "(needed: all)" in lines[1]
