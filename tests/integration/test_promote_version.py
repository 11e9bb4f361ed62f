"""`align promote --version N` as a person types it, over a registry in a file."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from align.cli import main
from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.services.tracking.registry import ROLLED_BACK
from align.services.tracking.tracker import Tracker
from tests.support.empty_versions import version
from tests.support.params import PARAMS_FILE
from tests.support.registered import RECALL


@pytest.fixture(autouse=True)
def no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models here are empty files; tests/integration/test_promotion.py has one that predicts."""
    monkeypatch.setattr(gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", packaged.is_dir()))


@pytest.mark.costs(5, "three versions are registered, and promoted nine times")
def test_any_version_may_be_promoted_and_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_mlflow: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--params", str(PARAMS_FILE), "--set", f"promote.metrics=[{RECALL}]"]

    def promote(*words: str) -> str:
        """Exit code and the last line that was printed: after a table of gates, the decision."""
        code = main(["promote", *settings, *words])
        done = capsys.readouterr()
        assert code or "already" in done.out or "  lineage  " in done.out
        return f"{code} {(done.out + done.err).strip().splitlines()[-1]}"

    nothing = "no MLflow here: MLFLOW_TRACKING_URI is not set, and there is no mlflow.db; run `align register` first"
    assert promote("--version", "1") == promote() == f"1 align: error: {nothing}"
    assert main(["rollback", *settings]) == 1 and nothing in capsys.readouterr().err
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    tracker = Tracker()
    assert promote("--version", "1").startswith(
        "1 align: error: model 'align' has no version 1; it has none: run `align"
    )
    first, second, third = (version(tracker, tmp_path, recall) for recall in (0.4, 0.6, 0.5))
    what = f"data dddddddddddd, model {first.tags['align.model_digest'][:12]}, git 0123abc"
    assert promote("--version", "7") == "1 align: error: model 'align' has no version 7; it has 1, 2, 3"
    assert promote("--version", "1").startswith(f"0 align version 1 (run {first.run_id}, {what}) is the champion: mean")
    assert promote("--version", "1") == f"0 align: version 1 already is the champion (run {first.run_id}, {what})"
    assert promote("--version", "2").startswith("0 align version 2 (run ")
    refused = promote()
    assert refused.startswith(
        f"1 align: error: align version 3 (the candidate: run {third.run_id}, {what}) is not promoted"
    )
    assert tracker.registry.aliases("align") == {"candidate": 3, "champion": 2}
    assert main(["rollback", *settings, "--reason", "slow on phones"]) == 0
    capsys.readouterr()
    refused = promote("--version", "2")
    assert refused.startswith(
        f"1 align: error: align version 2 (run {second.run_id}, {what}) is not promoted: rolled back: at 20"
    )
    assert f"slow on phones; needed: never; remove its tag {ROLLED_BACK} to allow its promotion" in refused
    assert promote("--version", "2", "--json").startswith(refused.partition("; needed:")[0])


def test_the_history_of_the_champion_as_a_person_asks_for_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    empty_mlflow: Callable[[Path], str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    monkeypatch.setenv("ALIGN_FLOW_RUN_ID", "f1")
    tracker = Tracker()
    settings = ["--params", str(PARAMS_FILE), "--set", f"promote.metrics=[{RECALL}]"]

    def said(*words: str) -> str:
        """Exit code and what was printed."""
        code = main([words[0], *settings, *words[1:]])
        done = capsys.readouterr()
        return f"{code} {done.out}{done.err}".strip()

    assert said("champion") == "1 align: error: MLflow has no version of a model 'align'; run `align register` first"
    for recall in (0.4, 0.6):
        version(tracker, tmp_path, recall)
    assert said("champion") == "0 align: the champion is no version; previous: none"
    assert said("promote", "--check") == "1 align: error: model 'align' has no champion to check"
    assert said("promote", "--version", "1").startswith("0 ")
    day = datetime.now(UTC).date().isoformat()
    lines = said("champion").splitlines()
    assert lines[0] == "0 align: the champion is version 1; previous: none" and len(lines) == 3
    assert lines[2].split()[1:5] == ["promoted", "none", "1", "flow"] and "well above chance" in lines[2]
    assert said("promote", "--check") == "0 align version 1, the champion passes the gates"
    assert said("champion", "--at", day).startswith(f"0 align: the champion at {day} was version 1; version 1 was prom")
    assert said("champion", "--at", "2020-01-01").startswith(
        "1 align: error: no champion of 'align' is known at 2020-01-01: its history begins "
    )
    assert said("champion", "--at", "noon").startswith("1 align: error: --at noon: expected a date such as 2026-11-01")

    tracker.registry.set_alias(version(tracker, tmp_path, 0.1), "champion")  # as good as chance
    noticed, refused = said("promote", "--check").splitlines()
    assert noticed.startswith("1 note: somebody moved the champion of 'align' by hand: from 1 to 3, ")
    assert refused.startswith("align: error: align version 3, the champion, moved by hand at ")
    assert "would not be promoted: above chance: " in refused
    known = json.loads(said("champion", "--json").removeprefix("0 "))
    assert (known["champion"], known["previous"], known["by_hand"]) == (3, 1, True)
    assert [(move["kind"], move["from"], move["to"], move["who"]) for move in known["history"]] == [
        ("promoted", None, 1, "flow run f1"), ("by hand", 1, 3, "unknown"),
    ]  # fmt: skip
    assert known["history"][0]["figures"][RECALL] == 0.4
    then = json.loads(said("champion", "--at", day, "--json").removeprefix("0 "))
    assert (then["champion"], then["since"]["kind"]) == (3, "by hand")
