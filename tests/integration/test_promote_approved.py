"""`align promote` where a person has to approve, as a person types it, over a registry in a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from align.cli import main
from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.services.tracking.tracker import Tracker
from tests.support.empty_versions import version
from tests.support.params import PARAMS_FILE
from tests.support.registered import RECALL


def test_a_promotion_waits_for_a_person_s_word_and_it_counts_for_what_was_judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_mlflow: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", packaged.is_dir()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    monkeypatch.setenv("ALIGN_FLOW_RUN_ID", "f1")
    tracker = Tracker()
    for recall in (0.4, 0.6, 0.3):
        version(tracker, tmp_path, recall)
    settings = ["--params", str(PARAMS_FILE), "--set", f"promote.metrics=[{RECALL}]", "--set", "promote.approval=true"]

    def promote(*words: str) -> str:
        """Exit code and the last line that was printed: after a table of gates, the decision."""
        code = main(["promote", *settings, *words])
        done = capsys.readouterr()
        return f"{code} {(done.out + done.err).strip().splitlines()[-1]}"

    def decided() -> tuple[str, int, int | None]:
        found = json.loads((tmp_path / "decision.json").read_bytes())
        return found["outcome"], found["candidate"], found["champion"]

    ann, file = ["--approved-by", "Ann", "--because", "reads signs"], f"--decision={tmp_path / 'decision.json'}"
    asked = promote("--version", "1")
    assert asked.startswith("1 align: error: align version 1 (run ")
    assert asked.endswith("(promote.approval): align promote --version 1 --approved-by WHO --because WHY")
    assert promote("--version", "1", file).startswith("0 align version 1 ") and decided() == ("unapproved", 1, None)
    assert tracker.registry.aliases("align") == {"candidate": 3}

    refused = promote("--version", "1", "--if-champion", "2", *ann)
    assert "the champion was version 2 when the promotion was judged, and now is none" in refused
    assert promote("--version", "1", "--if-champion", "0", *ann).startswith("0 align version 1 ")
    rejected = promote("--version", "2", "--rejected-by", "Bob", "--because", "slow")
    assert rejected == "0 align: version 2 was rejected: slow (Bob); nothing was moved"
    assert tracker.registry.aliases("align") == {"candidate": 3, "champion": 1}
    stale = promote("--if-candidate", "2", *ann)
    assert "it was the candidate when the promotion was judged, and now version 3 is" in stale
    worse = promote("--if-candidate", "3", "--if-champion", "1", file, *ann)  # nobody's word replaces a gate
    assert worse.startswith("1 align: error: align version 3 ") and "is not promoted: " in worse
    assert decided() == ("refused", 3, 1)
    moves = tracker.registry.champion_state("align").moves
    assert [(move.kind, move.before, move.to, move.who) for move in moves] == [
        ("promoted", None, 1, "Ann, by flow run f1"), ("rejected", 1, 1, "Bob, by flow run f1"),
    ]  # fmt: skip
    assert moves[0].why.endswith("; approved: reads signs") and moves[1].why == "version 2 was rejected: slow"
