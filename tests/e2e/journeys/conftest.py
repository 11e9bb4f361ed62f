"""Each journey starts in a fresh folder, and leaves the demo of this checkout as it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.checkout.run_branch import record
from tests.support import ROOT, small_project
from tests.support.dvc_projects import shell
from tests.support.journeys import demo_state


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A fresh folder, outside the checkout."""
    before = demo_state()
    yield tmp_path
    assert demo_state() == before, "a journey touched the demo of this checkout"


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small project whose every stage has run, with that as branch run/demo; tests work in copies of its folder."""
    project = small_project.write(tmp_path_factory.mktemp("small"))
    shell(project, "dvc repro", {"PYTHONPATH": str(ROOT)}, timeout_s=500)
    record(project, "demo", "a run")
    return project
