"""A project that `align init` made, with real git and DVC: its stages run, in place and in a worktree of a run."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from align.services.git import git
from flows.checkout.workspace import in_worktree
from flows.request import Request
from tests.support import ROOT
from tests.support.cpu_budget import costs
from tests.support.dvc_projects import attempt, shell

#: The installed package is this checkout.
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
@costs(4, "the real init and ingest")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project over eight pictures, whose first stage has run."""
    home = tmp_path_factory.mktemp("own")
    (home / "photos").mkdir()
    with (home / "photos/captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption"])
        for number in range(8):
            Image.new("RGB", (240, 220), (30 * number, 90, 120)).save(home / f"photos/{number}.jpg")
            table.writerow([f"{number}.jpg", f"a plain picture of colour number {number}"])
    shell(home, "align init mine --profile photographs --set paths.archive=photos", ENVIRONMENT)
    shell(home / "mine", "dvc repro ingest", ENVIRONMENT)
    return home / "mine"


def test_a_stage_runs_with_the_installed_code(project: Path) -> None:
    metrics = json.loads((project / "reports/ingest/metrics.json").read_text())
    assert metrics["ingest/num_pairs"] == 8
    assert git(project, "status", "--porcelain") == "?? dvc.lock"
    assert json.loads(shell(project, "dvc status --json ingest", ENVIRONMENT)) == {}


@pytest.mark.costs(4, "commands of align and DVC read all code")
def test_other_code_makes_its_stage_stale(project: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(project, copy, symlinks=True)
    shell(copy, "align code", ENVIRONMENT)
    assert json.loads(shell(copy, "dvc status --json ingest", ENVIRONMENT)) == {}
    lines = (copy / "code.yaml").read_text().splitlines(keepends=True)
    older = [f"ingest: {'0' * 64}\n" if line.startswith("ingest:") else line for line in lines]
    (copy / "code.yaml").write_text("".join(older))
    status = json.loads(shell(copy, "dvc status --json ingest", ENVIRONMENT))
    assert status == {"ingest": [{"changed deps": {"code.yaml": {"ingest": "modified"}}}]}
    refused = attempt(copy, "dvc repro --single-item ingest", ENVIRONMENT)
    assert refused.returncode != 0
    assert "align: error: code.yaml: this is other code of stage ingest than what it names" in refused.stderr
    said = shell(copy, "dvc repro ingest", ENVIRONMENT)
    assert "Running stage 'code'" in said and "Running stage 'ingest'" not in said


def test_a_run_s_worktree_takes_the_stage_from_the_cache(project: Path) -> None:
    with in_worktree(project, Request(overrides={"filter.min_words": 2}), log=lambda line: None) as work:
        assert not (work.root / "align").exists()
        said = shell(work.root, "dvc repro ingest", ENVIRONMENT)
        assert "'ingest' is cached" in said and "Running stage 'ingest'" not in said
        assert (work.root / "data/raw/00000.parquet").exists()
