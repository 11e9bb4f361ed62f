"""Checkouts and worktrees of runs, with real git and DVC: what a gate refuses there, what the cache has, what a run
would replace, and a project that `align init` made.
"""

import csv
import json
import os
import shutil

import pytest
from PIL import Image

from align.cli import main
from align.errors import DataError
from align.formats.acceptances import read_acceptances
from align.services.git import git
from align.validate.report import read_report
from flows.checkout.worktree import in_worktree, worktree, write_params
from flows.dag import Selection, Stage, read_dag
from flows.request import Request
from flows.run.context import RunContext, child_environment
from flows.run.supervised import CommandError, run_supervised
from flows.stage import located
from flows.states import read_states, require_known
from tests.support import ROOT, small_data
from tests.support.dvc_projects import attempt, commit_all, enter, make_repository, shell
from tests.support.evaluation_sets import write_set
from tests.support.gates import pairs
from tests.support.local_stack import stub_repository
from tests.support.params import PARAMS_FILE, load_params
from tests.support.warm import commands


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A repository whose stages have run."""
    root = tmp_path_factory.mktemp("made") / "repo"
    stub_repository(root)
    path = f"{root}/bin{os.pathsep}{commands()}{os.pathsep}{os.environ['PATH']}"
    shell(
        root, "dvc repro --quiet index", {"PATH": path, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    )  # the stub prints it
    return root


@pytest.mark.parametrize("damaged", [None, "table", "list"])
def test_a_worktree_after_one_call_of_dvc(made, tmp_path, monkeypatch, damaged):
    """It begins with the results of the checkout; a stage whose outs the cache has lost is stale."""
    root, tree = tmp_path / "repo", tmp_path / "tree"
    shutil.copytree(made, root, symlinks=True)
    monkeypatch.setenv("PATH", f"{root}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    table = (root / "models/pretrained/table").read_bytes()
    for file in (root / ".dvc/cache/files/md5").glob("*/*") if damaged else ():
        listed = file.name.endswith(".dir") and b'"table"' in file.read_bytes()
        if file.read_bytes() == table if damaged == "table" else listed:
            file.unlink()
    with worktree(root, "HEAD", tree, {}) as path:
        run = RunContext(root=path, checkout=root, chosen=Selection(read_dag(path)))
        states = {name: one for name, one in read_states(run).items() if name != "unused"}
        if damaged:
            assert states["pretrain"].state == "stale"  # it is run, as before
        else:
            assert {one.state for one in states.values()} == {"unchanged"}
            assert (path / "models/pretrained/table").read_bytes() == table
        assert (path / "dvc.lock").read_bytes() == (root / "dvc.lock").read_bytes()


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
def _project(tmp_path, monkeypatch):
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
    return enter(root, monkeypatch, {"TABLES": str(tables)})


def run_project(root, request, log=lambda line: None):
    """What `dvc repro` prints in a worktree; a failure with the words of a stage's task."""
    with in_worktree(root, request, log) as workspace:
        run = RunContext(root=workspace.root, checkout=root)
        try:
            return run_supervised(["dvc", "repro"], cwd=run.root, env=child_environment(run), log=lambda line: None)
        except CommandError as error:
            gate = Stage("validate", "", "data", (), (), (), "reports/quality")
            raise CommandError(located(str(error), gate, run)) from None


def test_the_verdict_of_a_failed_run_can_be_accepted(project, capsys):
    with pytest.raises(CommandError) as caught:
        run_project(project, REFUSED)
    message = str(caught.value)
    [tree] = (project / ".align/worktrees").iterdir()
    folder = f"{tree.relative_to(project)}/reports"
    assert "see reports/quality/report.html" in message and (tree / "reports/quality/report.html").is_file()
    assert f"; --from {folder}; the reports and the log of this run are in {tree.relative_to(project)}" in message
    assert not (project / "reports").exists()

    def accept(*words):
        """Exit code and the last line."""
        code = main(["validate", "--accept", "keep-rate", "--reason", "few icons", "--by", "Ada", *words])
        return f"{code} {capsys.readouterr().err.strip().splitlines()[-1]}"

    assert accept().startswith("1 align: error: reports/quality/report.json: no such file")
    assert accept("--from", "elsewhere").startswith(
        "1 align: error: --from elsewhere: no folder with reports of a gate"
    )
    assert accept("--from", folder).startswith("0 validate: keep-rate accepted for this data; commit data/policy")
    report = read_report(tree / "reports/quality")
    assert report and [one.data for one in read_acceptances(project / "data/policy")] == [report.data]
    assert main(["validate", "--from", folder]) == 1
    assert "--from FOLDER: say what to accept there" in capsys.readouterr().err
    commit_all(project, "accepted")
    assert any("1 accepted by people" in line for line in run_project(project, REFUSED))


ONE_STAGE = """\
stages:
  ingest:
    cmd: mkdir -p data/raw reports/ingest && cp value.txt data/raw/ && cp value.txt reports/ingest/
    deps: [value.txt]
    outs: [data/raw, reports/ingest]
    meta: {flow: data}
"""
FILES = {"dvc.yaml": ONE_STAGE, "params.yaml": "paths: {raw: data/raw, reports: reports}\n", "value.txt": "one"}


def test_only_what_would_be_lost_stops_a_run(tmp_path, monkeypatch):
    root = enter(make_repository(tmp_path / "project", FILES, ""), monkeypatch)
    dag = read_dag(root)
    run = RunContext(root=root, checkout=root, chosen=Selection(dag, asked=dag))
    raw = root / "data/raw"

    def check():
        require_known(run, read_states(run))

    def put(text):
        shutil.rmtree(raw, ignore_errors=True)
        raw.mkdir(parents=True)
        (raw / "value.txt").write_text(text)

    put("mine")
    with pytest.raises(DataError, match=r"data/raw holds what DVC does not know, .* `dvc commit ingest`; else move it"):
        check()  # before any run
    shutil.rmtree(raw)
    check()
    shell(root, "dvc repro --quiet", {})
    (root / "value.txt").write_text("two")
    check()  # what would be replaced is what dvc.lock records
    shell(root, "dvc repro --quiet", {})
    put("one")
    check()  # not what dvc.lock records, but the cache has it
    put("mine")
    with pytest.raises(DataError, match="data/raw holds what DVC does not know"):
        check()
    (raw / "value.txt").unlink()
    with pytest.raises(DataError, match="data/raw holds what DVC does not know"):
        check()  # an emptied folder is not what DVC knows, either
    put("mine")
    shell(root, "dvc commit --quiet --force ingest", {})
    check()
    shutil.rmtree(root / "reports/ingest")
    (root / "reports/ingest").mkdir()
    (root / "reports/ingest/page").write_text("of a failed run")
    check()  # a report is made again


#: The installed package is this checkout.
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
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


def test_a_stage_runs_with_the_installed_code(own):
    metrics = json.loads((own / "reports/ingest/metrics.json").read_text())
    assert metrics["ingest/num_pairs"] == 8
    assert git(own, "status", "--porcelain") == "?? dvc.lock"
    assert json.loads(shell(own, "dvc status --json ingest", ENVIRONMENT)) == {}


def test_other_code_makes_its_stage_stale(own, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(own, copy, symlinks=True)
    shell(copy, "python -m align.project.code", ENVIRONMENT)
    assert json.loads(shell(copy, "dvc status --json ingest", ENVIRONMENT)) == {}
    lines = (copy / "code.yaml").read_text().splitlines(keepends=True)
    older = [f"ingest: {'f' * 64}\n" if line.startswith("ingest:") else line for line in lines]
    (copy / "code.yaml").write_text("".join(older))
    status = json.loads(shell(copy, "dvc status --json ingest", ENVIRONMENT))
    assert status == {"ingest": [{"changed deps": {"code.yaml": {"ingest": "modified"}}}]}
    refused = attempt(copy, "dvc repro --single-item ingest", ENVIRONMENT)
    assert refused.returncode != 0
    assert "align: error: code.yaml: this is other code of stage ingest than what it names" in refused.stderr
    said = shell(copy, "dvc repro ingest", ENVIRONMENT)
    assert "Running stage 'code'" in said and "Running stage 'ingest'" not in said


def test_a_run_s_worktree_takes_the_stage_from_the_cache(own):
    with in_worktree(own, Request(overrides={"filter.min_words": 2}), log=lambda line: None) as work:
        assert not (work.root / "align").exists()
        said = shell(work.root, "dvc repro ingest", ENVIRONMENT)
        assert "Stage 'ingest' didn't change" in said and "Running stage 'ingest'" not in said
        assert (work.root / "data/raw/00000.parquet").exists()
