"""Promotion in a real MLflow, of a real model: tests/unit/release/test_promote.py asks what needs neither."""

import json
from pathlib import Path

import pytest

from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.release.promotion.promote import PAGES
from align.services.tracking.registry import CHAMPION
from tests.support import registered
from tests.support.registered import RECALL, Project


@pytest.fixture
def project(tmp_path: Path, mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return registered.write(tmp_path, mlflow_server)


@pytest.mark.costs(10, "a registered model is loaded by a process of its own, as anybody would")
def test_a_decision_is_kept_with_its_page_and_counted(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert champion is not None
    last = project.tracker.registry.champion_state(project.config.model_name).last
    assert last is not None and last.figures[RECALL] == 0.5
    assert champion.tags["align.evaluation_digest"] == "d" * 64
