"""Promotion and rollback in a real MLflow."""

import json
from pathlib import Path

import pytest

from align.errors import DataError
from align.release import gates
from align.release.decision import Gate
from align.release.promote import PAGES
from align.release.rollback import rollback
from align.services.registry import CHAMPION
from tests.support import registered
from tests.support.registered import RECALL, Project

OTHER = {"concepts": "e" * 64}


@pytest.fixture
def project(tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return registered.write(tmp_path, mlflow_server)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real prediction loads torch in a process of its own, each time; one test does."""
    monkeypatch.setattr(gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", packaged.is_dir()))


@pytest.mark.usefixtures("quick")
def test_promotion_and_rollback_over_three_champions(project: Project) -> None:
    model = project.config.model_name
    with pytest.raises(DataError, match="no version with alias 'candidate'"):
        project.promote()
    first = project.candidate(0.5)
    decision = project.promote()
    assert (decision.outcome, decision.candidate, decision.champion) == ("promoted", 1, None)
    assert project.promote().outcome == "unchanged"
    project.candidate(0.53)  # better by three points, of which two are the margin: that may be chance
    refused = project.promote()
    assert refused.outcome == "refused"
    assert refused.reason.startswith("better than version 1: +3.0 points, 95% lower bound +")
    assert refused.reason.endswith("needed: bound above +2.0")
    assert project.aliases() == {"candidate": 2, "champion": 1}
    third, fourth = project.candidate(0.6), None
    assert project.promote().outcome == "promoted"
    assert project.aliases() == {"candidate": 3, "champion": 3, "previous": 1}
    fourth = project.candidate(0.7)
    assert project.promote().scores == {RECALL: (0.7, 0.6)}
    assert project.aliases() == {"candidate": 4, "champion": 4, "previous": 3}

    done = rollback(model, "slow on phones", project.tracker)
    assert (done.champion, done.replaced) == (third, fourth)
    assert project.aliases() == {"candidate": 4, "champion": 3, "previous": 1}
    again = project.promote()
    assert again.outcome == "refused"
    assert again.reason.startswith("rolled back: at 20") and "slow on phones" in again.reason
    assert rollback(model, "why", project.tracker).champion == first
    assert project.aliases() == {"candidate": 4, "champion": 1}
    with pytest.raises(DataError, match="no champion before 1"):
        rollback(model, "why", project.tracker)


@pytest.mark.usefixtures("quick")
def test_a_candidate_near_chance_is_refused_even_without_a_champion(project: Project) -> None:
    project.candidate(0.3)
    decision = project.promote()
    assert decision.outcome == "refused"
    assert f"above chance: {RECALL}: lower 95 % bound 0.2" in decision.reason
    assert "needed: 3 x chance = 0.3000" in decision.reason
    assert project.aliases() == {"candidate": 1}
    with pytest.raises(DataError, match="names the set 'sketches', which is not here, and on which the candidate"):
        project.promote("promote.metrics=[sketches/image_to_text/recall@1]")
    with pytest.raises(DataError, match="metric 'concepts/knn/accuracy' was not measured; the measured sets are conc"):
        project.promote("promote.metrics=[concepts/knn/accuracy]")


def test_a_decision_is_kept_with_its_page_and_counted(project: Project) -> None:
    """All gates are real here, the prediction from the registry's bytes, too."""
    project.candidate(0.5)
    first = project.promote()
    names = {gate.name: gate for gate in first.gates}
    assert first.outcome == "promoted" and first.compared is None and first.num_decided == 0
    assert names["smoke prediction"].figure == "a text and a picture have embeddings of length 1, 24 values each"
    assert names["registered bytes"].figure.endswith("as registered; no dvc.lock of its revision here")
    assert names["health alarms"].passed is None
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
    assert champion is not None
    last = project.tracker.registry.champion_state(project.config.model_name).last
    assert last is not None and last.figures[RECALL] == 0.5
    assert champion.tags["align.evaluation_digest"] == "d" * 64


def test_bytes_that_were_changed_in_the_store_are_refused(project: Project) -> None:
    project.candidate(0.5)
    (version,) = project.tracker.registry.versions(project.config.model_name)
    project.tracker.log_folder(version.run_id, _other_requirements(project.root), "model")
    decision = project.promote()
    failed = {gate.name for gate in decision.gates if gate.passed is False}
    assert decision.outcome == "refused" and failed == {"registered bytes"}
    assert ", registered as " in decision.reason and project.aliases() == {"candidate": 1}


def _other_requirements(root: Path) -> Path:
    folder = root / "changed"
    folder.mkdir()
    (folder / "requirements.txt").write_text("mlflow\n")
    return folder


@pytest.mark.usefixtures("quick")
def test_another_set_of_today_must_be_here_to_measure_the_champion(project: Project) -> None:
    project.candidate(0.5)
    project.promote()
    project.candidate(0.7, sets=OTHER)
    with pytest.raises(DataError, match="version 1 has to be measured on the set 'concepts' of today, which is not he"):
        project.promote()
    assert project.aliases() == {"candidate": 2, "champion": 1}
