"""Promotion and rollback in a real MLflow."""

from pathlib import Path

import pytest

from align.errors import DataError
from align.release.promote import promote
from align.release.rollback import rollback
from tests.support import registered
from tests.support.registered import PROMOTE, RECALL, Project


@pytest.fixture
def project(tmp_path: Path, mlflow_server: str) -> Project:
    return registered.write(tmp_path, mlflow_server)


def test_promotion_and_rollback_over_three_champions(project: Project) -> None:
    model = project.config.model_name
    with pytest.raises(DataError, match="no version with alias 'candidate'"):
        project.promote()
    first = project.candidate(0.5)
    decision = project.promote()
    assert (decision.outcome, decision.candidate, decision.champion) == ("promoted", 1, None)
    assert project.promote().outcome == "unchanged"
    project.candidate(0.515)
    refused = project.promote()
    assert refused.outcome == "refused"
    assert "0.5150, the champion's (version 1) 0.5000; needed: at least 0.5200" in refused.reason
    assert project.aliases() == {"candidate": 2, "champion": 1}
    third, fourth = project.candidate(0.52), None
    assert project.promote().outcome == "promoted"
    assert project.aliases() == {"candidate": 3, "champion": 3, "previous": 1}
    fourth = project.candidate(0.6)
    assert project.promote().scores == {RECALL: (0.6, 0.52)}
    assert project.aliases() == {"candidate": 4, "champion": 4, "previous": 3}

    done = rollback(model, "slow on phones", project.tracker)
    assert (done.champion, done.replaced) == (third, fourth)
    assert project.aliases() == {"candidate": 4, "champion": 3, "previous": 1}
    again = project.promote()
    assert again.outcome == "refused"
    assert "slow on phones" in again.reason
    assert rollback(model, "why", project.tracker).champion == first
    assert project.aliases() == {"candidate": 4, "champion": 1}
    with pytest.raises(DataError, match="no champion before 1"):
        rollback(model, "why", project.tracker)


def test_a_candidate_near_chance_is_refused_even_without_a_champion(project: Project) -> None:
    project.candidate(0.5, low=0.29)
    decision = project.promote()
    assert decision.outcome == "refused"
    assert "lower 95 % bound 0.2900 is below 3 x chance = 0.3000" in decision.reason
    assert project.aliases() == {"candidate": 1}
    with pytest.raises(DataError, match="no metric 'sketches/recall@1'"):
        promote(
            PROMOTE.model_copy(update={"metrics": ["sketches/recall@1"]}), project.config.model_name, project.tracker
        )
