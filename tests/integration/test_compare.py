"""`align compare` over three runs that real git and DVC recorded, and over the checkout."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.formats.query_ranks import QueryRanks, Ranked, write_ranks
from align.services.git import git
from align.services.tracking.tracker import Tracker
from flows.checkout.run_branch import record
from flows.checkout.worktree import write_params
from tests.support.dvc_projects import commit_all, enter, make_repository, shell
from tests.support.params import PARAMS_FILE

#: One stage that writes what compare reads of all stages; the metric moves with the parameter.
DVC_YAML = """\
stages:
  all:
    cmd: python align/stages.py
    deps: [align/stages.py]
    params: [pretrain.learning_rate, pretrain.batch_size]
    outs: [data/shards, reports/ingest, reports/evaluation, reports/package]
"""
STAGES = """\
import json
import shutil
from pathlib import Path
from ruamel.yaml import YAML
pretrain = YAML(typ="safe").load(Path("params.yaml").read_text())["pretrain"]
rate = pretrain["learning_rate"]
score = "concepts/text_to_image/recall@10"
def write(name, content):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(json.dumps(content))
write("data/shards/manifest.json", {"digest": "d" * 64})
write("reports/ingest/metrics.json", {"ingest/num_pairs": 1200, "filter/num_kept": 600})
parts = {"": rate * 100, "/low": rate * 100 - 0.1, "/high": rate * 100 + 0.1, "/chance": 0.02}
write("reports/evaluation/metrics.json", {score + part: value for part, value in parts.items()})
shutil.copy(f"ranks/{rate}.parquet", "reports/evaluation/ranks.parquet")
write("reports/package/metrics.json", {"package/num_files": 3})
write("reports/package/report.json", {"digest": str(rate).ljust(64, "0")})
"""
LONG = "one-run-with-a-name-that-is-long"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs `first` (learning rate 0.002), `second` (0.0025) and LONG (0.006, batches of 64, other code)."""
    root = tmp_path_factory.mktemp("compare") / "project"
    make_repository(root, {"dvc.yaml": DVC_YAML}, "")
    (root / "align").mkdir()
    (root / "align/stages.py").write_text(STAGES)
    shutil.copy(PARAMS_FILE, root)
    for name, rate, changes in (("first", 0.002, {}), ("second", 0.0025, {}), (LONG, 0.006, {"batch_size": 64})):
        values = {"learning_rate": rate, **changes}
        right, queries = round(rate * 100 * 40), tuple(map(str, range(40)))
        ranks = Ranked(queries, queries, None, np.repeat([1, 30], [right, 40 - right]), np.ones(40, np.int64), 40)
        (root / "ranks").mkdir(exist_ok=True)
        write_ranks(
            QueryRanks({"concepts": "e" * 64}, {("concepts", "text_to_image"): ranks}), root / f"ranks/{rate}.parquet"
        )
        write_params(root / "params.yaml", {f"pretrain.{key}": value for key, value in values.items()})
        if changes:
            (root / "align/stages.py").write_text(f"# changed\n{STAGES}")
        commit_all(root, name)
        shell(root, "dvc repro --quiet", {})
        record(root, name, f"run {name}")
    return root


@pytest.fixture(name="project")
def _project(made, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(made, root, symlinks=True)
    return enter(root, monkeypatch)


def printed(capsys, *words):
    """What the command printed on stdout and stderr."""
    assert main(["compare", *words]) == 0
    done = capsys.readouterr()
    return done.out, done.err


def test_three_runs_side_by_side(project, capsys):
    out, err = printed(capsys, "first", "run/second", LONG, ".", "--html", "out/runs.html")
    lines = [line.split() for line in out.splitlines()]
    commit, base = git(project, "rev-parse", "run/first"), git(project, "rev-parse", "run/first^")
    assert out.startswith(f"A  run/first, commit {commit[:10]} of ") and f"made from {base[:10]}" in out
    assert ["pretrain.batch_size", "256", "256", "64", "64"] in lines
    assert ["pretrain.learning_rate", "0.002", "0.0025", "0.006", "0.006"] in lines
    assert "pretrain.num_steps" not in out
    assert ["align/stages.py", "differs", "differs"] in lines
    assert ["pairs", "kept", *["600"] * 4] in lines and ["share", "kept", *["50.0%"] * 4] in lines
    assert ["digest", "of", "the", "shards", *["d" * 12] * 4] in lines
    row = next(line for line in out.splitlines() if "recall@10" in line)
    measured = ["20.0 [10.0-30.0]", "25.0 [15.0-35.0]", "60.0 [50.0-70.0]*"]
    assert re.split("  +", row.strip()) == ["concepts/text_to_image/recall@10", *measured]
    assert out.count(measured[2]) == 2 and "no value in common" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "None is recorded." in out and "no cost: MLflow was not used here" in err
    assert not (project / "mlflow.db").exists()
    page = Path("out/runs.html").read_text()
    assert f"run/{LONG}" in page and '"ranks"' not in printed(capsys, "first", ".", "--json")[0]
    asked = [page.partition(f"<h2 id=which-is-better--a-or-{letter}>")[2].partition("<h2")[0] for letter in "bcd"]
    assert "No difference is shown. " in asked[0] and all("C is better" not in one for one in (asked[0], asked[2]))
    assert "C is better by 1 of 1 metrics, A by 0;" in asked[1] and "C − A +40.0 points" in asked[1]
    assert [one.count("<svg ") for one in asked] == [1, 1, 1] and "D − A, percentage points" in asked[2]
    (project / "reports/evaluation/ranks.parquet").unlink()
    printed(capsys, "first", ".", "--html", "out/runs.html")
    assert "It cannot be said query by query: . has no rank of each query here." in Path("out/runs.html").read_text()
    listed = json.loads(printed(capsys, "first", LONG, "--json")[0])["runs"]
    assert listed[1]["code_differs_from_first"] == ["align/stages.py"]
    assert listed[1]["params"]["pretrain.batch_size"] == 64


def test_what_a_run_cost(project, capsys):
    tracker = Tracker()
    for rate, hours, tags in ((0.002, 1.5, {}), (0.006, None, {"cached_stages": "ingest, pretrain"})):
        run_id = tracker.start_run("align", "x")
        tracker.set_tags(run_id, {"align.model_digest": str(rate).ljust(64, "0"), **tags})
        if hours:
            tracker.log_metrics(run_id, {"pretrain/train/device_hours": hours, "pretrain/train/pairs_per_s": 1234.0})
        tracker.end_run(run_id)
    out, _ = printed(capsys, "first", LONG, "--set", "health.price_per_hour=2.5")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "pretrain: device time, h:mm:ss 1:30:00 cached" in lines
    assert "pretrain: pairs/s 1,234 -" in lines and "pretrain: price 3.75 -" in lines


def test_a_run_shows_nothing_of_a_model_that_it_did_not_begin_with(project, capsys):
    write_params(project / "params.yaml", {"finetune.from": "imported", "model.embed_width": 320})
    (project / "models/finetuned").mkdir(parents=True)
    (project / "models/finetuned/config.json").write_text(json.dumps({"model": {"embed_width": 24}}))
    (project / "runtime").mkdir()
    for stage, speed in (("pretrain", 20.0), ("finetune", 0.0)):
        (project / "reports" / stage).mkdir()
        (project / "reports" / stage / "report.json").write_text("{}")
        (project / "reports" / stage / "metrics.json").write_text(json.dumps({f"{stage}/number": 1}))
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {"started_at": started, "outcome": "completed", "pairs_per_s": speed, "wall_s": 60}
        (project / "runtime" / f"{stage}.json").write_text(json.dumps(record))
    here = json.loads(printed(capsys, "first", ".", "--json")[0])["runs"][1]
    assert here["costs"] == {}
    assert "finetune/number" in here["metrics"] and "pretrain/number" not in here["metrics"]
    assert not any(key.startswith(("pretrain", "fit_tokenizer")) for key in here["params"])
    assert here["params"]["finetune.batch_size"] == 64  # inherited
    assert {key: value for key, value in here["params"].items() if key.startswith("model")} == {"model.embed_width": 24}


def test_what_is_missing_is_said(project, capsys):
    shutil.rmtree(project / ".dvc/cache")
    out, err = printed(capsys, "first", ".")
    assert "run/first: reports/evaluation is neither in DVC's cache nor in a remote" in err
    assert "`dvc fetch --all-branches reports/evaluation`" in err
    assert ["pairs", "kept", "-", "600"] in [line.split() for line in out.splitlines()]

    def refused(*words):
        assert main(["compare", *words]) == 1
        return capsys.readouterr().err.strip()

    assert refused("first") == "align: error: align compare first: name two runs or more; `.` is this checkout"
    known = f"the runs are first, {LONG}, second"
    assert refused(".", "third") == f"align: error: 'third' is not a run, git revision, or '.' (this checkout); {known}"
    assert refused(".", "main~2").startswith("align: error: 'main~2' has no dvc.lock, the record of a run")
