"""Versions without ranks, or with those of other sets: `align promote` measures their registered model itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from align.durable.files import sha256_folder
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.evaluation_sets.align_tar import write_set
from align.formats.query_ranks import RANKS
from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.release.promotion.evidence import MEASURED
from tests.support import registered
from tests.support.colours import COLOURS, square

IMAGES = [
    EvaluationImage(f"{name}{shade}", f"{name}{shade}", (name, shade * "x"), None, None, "query")
    for name in COLOURS for shade in (0, 9, 18, 27)
]  # fmt: skip
PICTURES = [square(name, shade=shade) for name in COLOURS for shade in (0, 9, 18, 27)]
TODAY = EvaluationSet("concepts", "retrieval", "squares", IMAGES, (), (), held(PICTURES))
#: Sixteen squares and an untrained model: nothing is above chance.
ANYHOW = "promote.min_times_chance=0"


@pytest.mark.full  # loads torch six times
def test_old_versions_are_measured_once_and_reports_stay(
    tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    passed = Gate("smoke prediction", "", "", True)  # the real one is in test_promotion
    monkeypatch.setattr(gates, "prediction", lambda packaged: passed)
    project = registered.write(tmp_path, mlflow_server)
    write_set(tmp_path / "evaluation", TODAY)
    project.candidate(0.5, keeps_ranks=False)
    before = sha256_folder(tmp_path / "reports")

    def promote() -> tuple[str, int]:
        """The outcome, and how many models were measured."""
        decision = project.promote(ANYHOW, f"paths.runtime={tmp_path / 'runtime'}")
        return decision.outcome, capfd.readouterr().err.count("measuring its registered model on today's sets")

    assert promote() == ("promoted", 1)
    project.candidate(0.9, keeps_ranks=False)  # the same weights: whatever was said, equally good
    assert promote() == ("refused", 1)  # the champion's ranks are kept
    assert promote() == ("refused", 0)
    project.candidate(0.95)  # its ranks are of other sets than today's
    assert promote() == ("refused", 1)
    assert len(list(MEASURED.iterdir())) == 3
    for damaged in MEASURED.glob(f"*/{RANKS}"):
        damaged.write_bytes(damaged.read_bytes()[:100])
    assert promote() == ("refused", 2)
    project.evaluate(0.5, keeps_ranks=False)
    assert sha256_folder(tmp_path / "reports") == before and not (tmp_path / "runtime").exists()

    write_set(tmp_path / "evaluation", replace(TODAY, pictures=held([b"no picture"] * len(PICTURES))))
    with pytest.raises(DataError, match="the model could not be measured: "):
        project.promote(ANYHOW)
    assert project.aliases() == {"candidate": 3, "champion": 1}
