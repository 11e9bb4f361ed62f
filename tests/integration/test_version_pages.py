"""The lineage page of a version shows the aliases that the version has, after each command that moves one."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from align.cli import main
from align.lineage.trace import page as trace_page
from align.lineage.trace.graph import Graph
from align.lineage.trace.trace import ARTIFACT
from align.release.promotion import gates
from align.release.promotion.decision import Gate
from align.services.tracking.registry import LINEAGE_PAGE, Version
from align.services.tracking.tracker import Tracker
from tests.support.empty_versions import version
from tests.support.params import PARAMS_FILE
from tests.support.registered import RECALL

SETTINGS = ["--params", str(PARAMS_FILE), "--set", f"promote.metrics=[{RECALL}]"]
NOTE = "note: a lineage page in MLflow does not show the aliases as they are: "


@dataclass(frozen=True)
class Made:
    """A model in MLflow."""

    tracker: Tracker
    model: str

    @property
    def versions(self) -> list[Version]:
        return self.tracker.registry.versions(self.model)

    def align(self, *words: str) -> int:
        """Runs a command about it."""
        return main([words[0], *SETTINGS, "--set", f"register.model_name={self.model}", *words[1:]])

    def notes(self, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
        """The notes of a command that succeeds, on lineage pages."""
        capsys.readouterr()
        assert self.align(*words) == 0, capsys.readouterr().err
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith(NOTE)]

    def pages(self, folder: Path) -> Mapping[int, list[str]]:
        """Version -> the aliases that its page in MLflow shows; without those that have no page."""
        found = {}
        for one in self.versions:
            if (file := self.tracker.artifact(one.run_id, ARTIFACT.as_posix(), folder)) is not None:
                found[one.number] = re.findall('<h3 class="good">(candidate|champion)</h3>', file.read_text())
        return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Callable[[Path], str]) -> Path:
    """A folder for one MLflow, in which each test has a model of its own."""
    folder = tmp_path_factory.mktemp("pages")
    empty_mlflow(folder)
    return folder


@pytest.fixture
def made(store: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Three versions, the last one is the candidate; `align` works here, in this process."""
    monkeypatch.chdir(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}/mlflow.db")
    monkeypatch.setattr(gates, "prediction", lambda packaged: Gate("smoke prediction", "", "", packaged.is_dir()))
    found = Made(Tracker(), request.node.name[:60])
    for recall in (0.4, 0.6, 0.5):
        version(found.tracker, store, recall, found.model)
    return found


def test_after_promotion_and_rollback_pages_show_the_aliases_as_they_are(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.pages(tmp_path) == {}
    assert made.notes(capsys, "promote", "--version", "1") == []
    assert made.pages(tmp_path) == {1: ["champion"], 3: ["candidate"]}
    assert made.notes(capsys, "promote", "--version", "2") == []
    assert made.pages(tmp_path) == {1: [], 2: ["champion"], 3: ["candidate"]}
    before = [dict(one.tags) for one in made.versions[:2]]
    assert made.align("promote") == 1  # version 3 is refused
    assert [dict(one.tags) for one in made.versions[:2]] == before
    assert made.pages(tmp_path) == {1: [], 2: ["champion"], 3: ["candidate"]}
    assert made.notes(capsys, "rollback", "--reason", "slow") == []
    assert made.pages(tmp_path) == {1: ["champion"], 2: [], 3: ["candidate"]}


def test_what_did_not_change_is_not_drawn_again(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[str] = []
    draw = trace_page.as_page

    def counted(graph: Graph) -> str:
        drawn.append(graph.subject)
        return draw(graph)

    monkeypatch.setattr(trace_page, "as_page", counted)
    made.notes(capsys, "promote", "--version", "1")
    assert sorted(drawn) == [f"{made.model} version {number}" for number in (1, 3)]
    made.notes(capsys, "promote", "--version", "1")  # it is the champion already
    made.notes(capsys, "champion")
    assert len(drawn) == 2
    made.tracker.registry.set_alias(made.versions[1], "champion")  # by hand
    made.notes(capsys, "champion")
    assert sorted(drawn[2:]) == [f"{made.model} version {number}" for number in (1, 2)]


def test_a_page_that_cannot_be_drawn_is_one_line_and_the_next_command_draws_it(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(graph: object) -> str:
        raise KeyError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(trace_page, "as_page", fails)
        (note,) = made.notes(capsys, "promote", "--version", "1")
    assert note == f"{NOTE}version 1: KeyError: 'a defect'; version 3: KeyError: 'a defect'"
    assert made.tracker.registry.aliases(made.model) == {"champion": 1, "candidate": 3}
    assert made.pages(tmp_path) == {}
    assert made.notes(capsys, "champion") == []
    assert made.pages(tmp_path) == {1: ["champion"], 3: ["candidate"]}


def test_a_page_is_not_replaced_by_one_with_fewer_links(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as from a laptop that has neither the data nor DVC's cache."""
    made.notes(capsys, "promote", "--version", "1")
    first = made.versions[0]
    shown = json.loads(first.tags[LINEAGE_PAGE])
    assert shown["aliases"] == ["champion"] and shown["missing"] > 0  # there is no data here
    made.tracker.registry.set_version_tags(first, {LINEAGE_PAGE: json.dumps(shown | {"missing": 0})})
    (note,) = made.notes(capsys, "promote", "--version", "2")
    assert note == (
        f"{NOTE}version 1: links that its page has are not on this machine; where they are, "
        f"`align trace {made.model}/1 --log` draws it"
    )
    assert made.pages(tmp_path) == {1: ["champion"], 2: ["champion"], 3: ["candidate"]}
    assert made.align("trace", f"{made.model}/1", "--log") == 0
    assert made.pages(tmp_path)[1] == []
    assert made.notes(capsys, "champion") == []
