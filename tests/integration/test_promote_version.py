"""`align promote` and `align champion` as a person types them, over a registry in a file."""

import json
from datetime import UTC, datetime

import pytest

from align.cli import main
from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.services.tracking.registry import ROLLED_BACK
from align.services.tracking.tracker import Tracker
from tests.support.empty_versions import version
from tests.support.params import PARAMS_FILE, sets
from tests.support.registered import RECALL


class Typed:
    """Commands typed in a folder: exit code and what they print."""

    def __init__(self, capsys):
        self.settings, self._capsys = ["--params", str(PARAMS_FILE), *sets(f"promote.metrics=[{RECALL}]")], capsys

    def __call__(self, verb, *words):
        code = main([verb, *self.settings, *words])
        done = self._capsys.readouterr()
        return f"{code} {done.out}{done.err}".strip()

    def promote(self, *words):
        """The last line: after a table of gates, the decision."""
        code, _, said = self("promote", *words).partition(" ")
        assert code != "0" or "already" in said or "  lineage  " in said or " rejected" in said
        return f"{code} {said.splitlines()[-1]}"


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """The models here are empty files; tests/integration/test_promotion.py has one that predicts."""
    monkeypatch.setattr(gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", packaged.is_dir()))
    monkeypatch.setenv("ALIGN_FLOW_RUN_ID", "f1")
    monkeypatch.chdir(tmp_path)
    return Typed(capsys)


@pytest.fixture
def tracker(typed, tmp_path, empty_mlflow, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    return Tracker()


def test_without_a_registry_the_line_says_what_to_do(typed, tmp_path):
    nothing = "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db; run `align register` first"
    for words in (("promote", "--version", "1"), ("promote",), ("rollback",)):
        assert typed(*words) == f"1 align: error: {nothing}"
    assert not (tmp_path / "mlflow.db").exists()


def test_any_version_may_be_promoted_and_is_named(typed, tracker, tmp_path):
    promote, error = typed.promote, "1 align: error: align version"
    none = "1 align: error: model 'align' has no version 1; it has none: run `align"
    assert promote("--version", "1").startswith(none)
    first, second, third = (version(tracker, tmp_path, recall) for recall in (0.4, 0.6, 0.5))
    what = f"data dddddddddddd, model {first.tags['align.model_digest'][:12]}, git 0123abc"
    assert promote("--version", "7") == "1 align: error: model 'align' has no version 7; it has 1, 2, 3"
    assert promote("--version", "1").startswith(f"0 align version 1 (run {first.run_id}, {what}) is the champion: mean")
    assert promote("--version", "1") == f"0 align: version 1 already is the champion (run {first.run_id}, {what})"
    assert promote("--version", "2").startswith("0 align version 2 (run ")
    refused = promote()
    assert refused.startswith(f"{error} 3 (the candidate: run {third.run_id}, {what}) is not promoted")
    assert tracker.registry.aliases("align") == {"candidate": 3, "champion": 2}
    assert typed("rollback", "--why", "slow on phones").startswith("0 ")
    refused = promote("--version", "2")
    assert refused.startswith(f"{error} 2 (run {second.run_id}, {what}) is not promoted: rolled back: at 20")
    assert f"slow on phones; needed: never; remove its tag {ROLLED_BACK} to allow its promotion" in refused
    assert promote("--version", "2", "--json").startswith(refused.partition("; needed:")[0])


def test_the_history_of_the_champion_as_a_person_asks_for_it(typed, tracker, tmp_path):
    said = typed
    assert said("champion") == "1 align: error: MLflow has no version of a model 'align'; run `align register` first"
    for recall in (0.4, 0.6):
        version(tracker, tmp_path, recall)
    assert said("champion") == "0 align: the champion is no version; previous: none"
    assert said("promote", "--version", "1").startswith("0 ")
    day = datetime.now(UTC).date().isoformat()
    lines = said("champion").splitlines()
    assert lines[0] == "0 align: the champion is version 1; previous: none" and len(lines) == 3
    assert lines[2].split()[1:5] == ["promoted", "none", "1", "flow"] and "well above chance" in lines[2]
    assert said("champion", "--at", day).startswith(f"0 align: the champion at {day} was version 1; version 1 was prom")
    for at, error in (
        ("2020-01-01", "no champion of 'align' is known at 2020-01-01: its history begins "),
        ("noon", "--at noon: expected a date such as 2026-11-01"),
    ):
        assert said("champion", "--at", at).startswith(f"1 align: error: {error}")

    tracker.registry.set_alias(version(tracker, tmp_path, 0.1), "champion")  # as good as chance
    shown, _, noticed = said("champion", "--json").rpartition("note: ")
    assert noticed == "somebody moved the champion of 'align' by hand, from 1 to 3; see `align champion`"
    known = json.loads(shown.removeprefix("0 "))
    assert (known["champion"], known["previous"], known["by_hand"]) == (3, 1, True)
    assert [(move["kind"], move["from"], move["to"], move["who"]) for move in known["history"]] == [
        ("promoted", None, 1, "flow run f1"), ("by hand", 1, 3, "unknown"),
    ]  # fmt: skip
    assert known["history"][0]["figures"][RECALL] == 0.4
    then = json.loads(said("champion", "--at", day, "--json").removeprefix("0 "))
    assert (then["champion"], then["since"]["kind"]) == (3, "by hand")


def test_a_promotion_waits_for_a_person_s_word_and_it_counts_for_what_was_judged(typed, tracker, tmp_path):
    for recall in (0.4, 0.6, 0.3):
        version(tracker, tmp_path, recall)
    typed.settings += sets("promote.approval=true")
    promote = typed.promote

    def decided():
        found = json.loads((tmp_path / "decision.json").read_bytes())
        return found["outcome"], found["candidate"], found["champion"]

    ann, file = ["--approved-by", "Ann", "--because", "reads signs"], f"--json={tmp_path / 'decision.json'}"
    asked = promote("--version", "1")
    assert asked.startswith("1 align: error: align version 1 (run ")
    assert asked.endswith("(promote.approval): align promote --version 1 --approved-by WHO --because WHY")
    assert promote("--version", "1", file).startswith("0 align version 1 ") and decided() == ("unapproved", 1, None)
    assert tracker.registry.aliases("align") == {"candidate": 3}

    refused = promote("--version", "1", "--expect-champion", "2", *ann)
    assert "the champion was version 2 when the promotion was judged, and now is none" in refused
    assert promote("--version", "1", "--expect-champion", "0", *ann).startswith("0 align version 1 ")
    rejected = promote("--version", "2", "--rejected-by", "Bob", "--because", "slow")
    assert rejected == "0 align: version 2 was rejected: slow (Bob); nothing was moved"
    assert tracker.registry.aliases("align") == {"candidate": 3, "champion": 1}
    worse = promote("--version", "3", "--expect-champion", "1", file, *ann)  # nobody's word replaces a gate
    assert worse.startswith("1 align: error: align version 3 ") and "is not promoted: " in worse
    assert decided() == ("refused", 3, 1)
    moves = tracker.registry.champion_state("align").moves
    assert [(move.kind, move.before, move.to, move.who) for move in moves] == [
        ("promoted", None, 1, "Ann, by flow run f1"), ("rejected", 1, 1, "Bob, by flow run f1"),
    ]  # fmt: skip
    assert moves[0].why.endswith("; approved: reads signs") and moves[1].why == "version 2 was rejected: slow"
