"""Promotion in a real MLflow, of real models, some of which are measured then: unit/release/promotion asks the rest."""

import json
from dataclasses import replace

import pytest

from align.durable.files import sha256_folder
from align.errors import DataError
from align.formats.evaluation_set import EvaluationImage, EvaluationSet, held
from align.formats.query_ranks import RANKS
from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.release.promotion.evidence import MEASURED
from align.release.promotion.promote import PAGES
from align.services.tracking.registry import CHAMPION
from tests.support import registered
from tests.support.colours import COLOURS, square
from tests.support.evaluation_sets import write_items
from tests.support.registered import RECALL


@pytest.fixture
def project(tmp_path, mlflow_server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return registered.write(tmp_path, mlflow_server)


def test_a_decision_is_kept_with_its_page_and_counted(project, monkeypatch):
    """All gates are real at first, the prediction from the registry's bytes, too: it loads torch in a process."""
    project.candidate(0.5)
    first = project.promote()
    names = {gate.name: gate for gate in first.gates}
    assert first.outcome == "promoted" and first.compared is None and first.num_decided == 0
    assert names["smoke prediction"].figure == "a text and a picture have embeddings of length 1, 24 values each"
    assert names["registered bytes"].figure.endswith("as registered; no dvc.lock of its revision here")
    assert names["health alarms"].passed is None
    monkeypatch.setattr(gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", packaged.is_dir()))
    project.candidate(0.501)  # the same ranks: equally good
    second = project.promote()
    assert second.outcome == "refused" and second.num_decided == 1
    (page,) = PAGES.glob("*-version-2/promotion.html")
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert all(gate.name in text for gate in second.gates)
        assert "about this model, not about its recipe" in text and "have decided once before" in text
    version = project.tracker.registry.versions(project.config.model_name)[1]
    kept = project.tracker.artifact(version.run_id, f"promotions/{page.parent.name}/promotion.html", project.root)
    assert kept is not None and kept.read_bytes() == page.read_bytes()
    assert version.tags["align.refused_because"] == second.reason
    assert json.loads(version.tags["align.refused_figures"])["difference"] == 0.0
    champion = project.tracker.registry.version_at(project.config.model_name, CHAMPION)
    assert project.tracker.registry.champion_state(project.config.model_name).moves[-1].figures[RECALL] == 0.5
    assert champion.tags["align.evaluation_digest"] == "d" * 64


IMAGES = [
    EvaluationImage(f"{name}{shade}", f"{name}{shade}", (name, shade * "x"), None, "query")
    for name in COLOURS for shade in (0, 9, 18, 27)
]  # fmt: skip
PICTURES = [square(name, shade=shade) for name in COLOURS for shade in (0, 9, 18, 27)]
TODAY = EvaluationSet("concepts", "retrieval", "squares", IMAGES, (), (), held(PICTURES))
#: Sixteen squares and an untrained model: nothing is above chance.
ANYHOW = "promote.min_times_chance=0"


@pytest.mark.journeys  # loads torch six times
def test_old_versions_are_measured_once_and_reports_stay(tmp_path, mlflow_server, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    passed = Gate("smoke prediction", "", "", True)  # the real one is in test_promotion
    monkeypatch.setattr(gates, "prediction", lambda packaged: passed)
    project = registered.write(tmp_path, mlflow_server)
    write_items(tmp_path / "evaluation", TODAY)
    project.candidate(0.5, keeps_ranks=False)
    before = sha256_folder(tmp_path / "reports")

    def promote():
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

    write_items(tmp_path / "evaluation", replace(TODAY, pictures=held([b"no picture"] * len(PICTURES))))
    with pytest.raises(DataError, match="the model could not be measured: "):
        project.promote(ANYHOW)
    assert project.aliases() == {"candidate": 3, "champion": 1}
