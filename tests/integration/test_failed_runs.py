"""A run in a worktree whose data the gate refuses, with real DVC and a real gate: its verdict can be accepted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from align.cli import main
from align.formats.acceptances import read_acceptances
from align.validate.report import read_report
from flows.checkout.failed_runs import NUM_KEPT, in_kept_folder
from flows.checkout.workspace import in_worktree, write_params
from flows.request import Request
from flows.tasks.child_process import CommandError, run_supervised
from flows.tasks.run_context import RunContext, child_environment, log_file
from tests.support import small_data
from tests.support.dvc_projects import commit_all, environment, make_repository
from tests.support.evaluation_sets import write_set
from tests.support.gates import pairs
from tests.support.params import PARAMS_FILE, load_params

DVC_YAML = """\
stages:
  filter:
    cmd: mkdir -p data reports && cp -r $TABLES/raw $TABLES/filtered data && cp -r $TABLES/filter reports
    outs: [data/raw, data/filtered, reports/filter]
  validate:
    cmd: align validate
    deps: [data/raw, data/filtered, data/evaluation, reports/filter/report.json, data/policy/accepted.json]
    params: [validate]
    outs: [reports/quality]
"""
REFUSED = Request(name="strict; rm -rf", overrides={"validate.keep_rate": [0.71, 0.9]})


@pytest.fixture(name="project")
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages with 20 pairs, of which 14 are kept; the working directory."""
    tables = tmp_path / "tables"
    small_data.write(tables, pairs())
    root = make_repository(tmp_path / "project", {"dvc.yaml": DVC_YAML}, "")
    write_set(root / "data/evaluation")
    sets = {"concepts": json.loads((root / "data/evaluation/concepts.json").read_text())["sha256"]}
    (tables / "filter").mkdir()
    (tables / "filter/report.json").write_text(json.dumps({"evaluation_sets": sets}))
    (root / "params.yaml").write_bytes(PARAMS_FILE.read_bytes())
    bands = {key: [0.0, 1.0] for key in load_params().values["validate"]["dropped_share"]}
    values = {"min_pairs": 10, "keep_rate": [0.5, 0.9], "min_evaluation_sets": 1, "dropped_share": bands}
    write_params(
        root / "params.yaml",
        {f"validate.{key}": value for key, value in values.items()} | {"paths.evaluation": "data/evaluation"},
    )
    (root / "data/policy").mkdir()
    (root / "data/policy/accepted.json").write_text('{"schema_version": 1, "accepted": []}')
    commit_all(root)
    for name, value in (environment(root, {}) | {"TABLES": str(tables)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(root)
    return root


def run_project(root: Path, request: Request, log: Callable[[str], None] = lambda line: None) -> list[str]:
    """What `dvc repro` prints in a worktree; a failure with the words of a stage's task."""
    with in_worktree(root, request, log) as workspace:
        run = RunContext(root=workspace.root, checkout=root, kept=workspace.kept)
        log_file(run.root).parent.mkdir(parents=True)
        log_file(run.root).write_text("what was printed")
        try:
            return run_supervised(["dvc", "repro"], cwd=run.root, env=child_environment(run), log=lambda line: None)
        except CommandError as error:
            raise CommandError(in_kept_folder(str(error), run, "reports")) from None


@pytest.mark.costs(6, "two runs of the pipeline by DVC")
def test_the_verdict_of_a_failed_run_can_be_accepted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError) as caught:
        run_project(project, REFUSED)
    message = str(caught.value)
    [kept] = (project / ".align/failed").iterdir()
    folder = f"{kept.relative_to(project)}/reports"
    assert kept.name.startswith("strict--rm--rf-")
    assert f"see {folder}/quality/report.html" in message
    assert (kept / "reports/quality/report.html").is_file() and (kept / "log.txt").read_text() == "what was printed"
    assert f'align validate --accept keep-rate --from {folder} --reason "why"' in message
    assert not (project / "reports").exists()

    def accept(*words: str) -> str:
        """Exit code and the last line."""
        code = main(["validate", "--accept", "keep-rate", "--reason", "few icons", "--by", "Ada", *words])
        return f"{code} {capsys.readouterr().err.strip().splitlines()[-1]}"

    assert accept().startswith("1 align: error: reports/quality/report.json: no such file")
    assert accept("--from", "elsewhere").startswith(
        "1 align: error: --from elsewhere: no folder with reports of a gate"
    )
    assert accept("--from", folder).startswith("0 validate: keep-rate accepted for this data; commit data/policy")
    report = read_report(kept / "reports/quality")
    assert report and [one.data for one in read_acceptances(project / "data/policy")] == [report.data]
    assert main(["validate", "--from", folder]) == 1
    assert "--from FOLDER: say what to accept there" in capsys.readouterr().err
    commit_all(project, "accepted")
    assert any("1 accepted by people" in line for line in run_project(project, REFUSED))


def test_the_newest_failed_runs_are_kept(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages:\n  validate:\n    cmd: mkdir -p reports && exit 1\n")
    commit_all(project)
    for number in range(NUM_KEPT):
        earlier = project / f".align/failed/run-{number}-{number:010}"
        earlier.mkdir(parents=True)
        os.utime(earlier, (number, number))
    said: list[str] = []
    with pytest.raises(CommandError):
        run_project(project, Request(name=f"run-{NUM_KEPT}"), said.append)
    with pytest.raises(CommandError):
        run_project(project, Request(name=f"run-{NUM_KEPT}"))  # the same again replaces the first
    kept = sorted(path.name[:5] for path in (project / ".align/failed").iterdir())
    assert kept == [f"run-{number}" for number in range(1, NUM_KEPT + 1)]
    assert "run-0-" in said[-1] and f"removed, since the {NUM_KEPT} newest failed runs are kept" in said[-1]
    assert load_params(project / "params.yaml").values["paths"]["reports"] == "reports"
