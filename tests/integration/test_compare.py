"""`align compare` over three runs in MLflow with commits of a real git, and over the checkout."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from align.cli import main
from align.config.params import flattened
from align.config.sections import changing_bytes
from align.formats.query_ranks import QueryRanks, Ranked, write_ranks
from align.release.registration.shown import log_report, tables
from align.services.git import git
from align.services.tracking.tracker import BRANCH, CACHED_STAGES, REVISION, Tracker
from flows.checkout.run_branch import record
from flows.checkout.worktree import write_params
from tests.support.dvc_projects import commit_all, enter, make_repository
from tests.support.params import PARAMS_FILE, load_params

LONG = "one-run-with-a-name-that-is-long"
SCORE = "concepts/text_to_image/recall@10"


def write_reports(root, rate):
    """What the stages report; the metric moves with the learning rate."""
    parts = {"": rate * 100, "/low": rate * 100 - 0.1, "/high": rate * 100 + 0.1, "/chance": 0.02}
    for name, metrics, report in (
        ("ingest", {"ingest/num_pairs": 1200, "filter/num_kept": 600}, {}),
        ("shard", {"shard/num_images": 3}, {"digest": "d" * 64}),
        ("evaluation", {SCORE + part: value for part, value in parts.items()}, {"evaluation_digest": "e" * 64}),
        ("package", {"package/num_files": 3}, {"digest": str(rate).ljust(64, "0")}),
    ):
        folder = root / "reports" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "report.json").write_text(json.dumps(report))
    right, queries = round(rate * 100 * 40), tuple(map(str, range(40)))
    ranks = Ranked(queries, queries, None, np.repeat([1, 30], [right, 40 - right]), np.ones(40, np.int64), 40)
    ranked = QueryRanks({"concepts": "e" * 64}, {("concepts", "text_to_image"): ranks})
    write_ranks(ranked, root / "reports/evaluation/ranks.parquet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs `first` (learning rate 0.002), `second` (0.0025) and LONG (0.006, batches of 64, other code)."""
    root = tmp_path_factory.mktemp("compare") / "project"
    make_repository(root, {}, "")
    (root / "align").mkdir()
    (root / "align/stages.py").write_text("x = 1\n")
    (root / ".gitignore").write_text("/reports\n/mlflow.db*\n/mlartifacts\n/out\n/models\n")
    shutil.copy(PARAMS_FILE, root)
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        tracker = Tracker()
        for name, rate, changes, hours, cached in (
            ("first", 0.002, {}, 1.5, ""), ("second", 0.0025, {}, None, ""),
            (LONG, 0.006, {"batch_size": 64}, None, "ingest, pretrain"),
        ):  # fmt: skip
            values = {"learning_rate": rate, **changes}
            write_params(root / "params.yaml", {f"pretrain.{key}": value for key, value in values.items()})
            if changes:
                (root / "align/stages.py").write_text("x = 2\n")
            commit_all(root, name)
            write_reports(root, rate)
            commit = record(root, name, f"run {name}").commit
            run = tracker.start_run("align", name, tags={REVISION: commit, BRANCH: f"run/{name}"})
            tracker.log_params(run, flattened(changing_bytes(load_params(root / "params.yaml").values)))
            folders = sorted((root / "reports").iterdir())
            for folder in folders:
                log_report(tracker, run, folder, [])
            tracker.log_tables(run, tables(folders))
            tracker.set_tags(run, {CACHED_STAGES: cached})
            if hours:
                tracker.log_metrics(run, {"pretrain/train/device_hours": hours, "pretrain/train/pairs_per_s": 1234.0})
            tracker.end_run(run)
    return root


@pytest.fixture(name="project")
def _project(made, monkeypatch):
    return enter(made, monkeypatch)


def printed(capsys, *words):
    """What the command printed on stdout and stderr."""
    assert main(["compare", *words]) == 0
    done = capsys.readouterr()
    return done.out, done.err


def test_three_runs_side_by_side(project, capsys):
    out, _ = printed(capsys, "first", "run/second", LONG, ".", "--html", "out/runs.html")
    lines = [line.split() for line in out.splitlines()]
    commit = git(project, "rev-parse", "run/first")
    first = out.splitlines()
    assert first[0].startswith("A and B are not told apart by any of 1 metrics. Most of all by concepts/")
    assert first[2].startswith("C is better by 1 of 1 metrics, A by 0;")
    assert "C − A +40.0 points (95 % interval +" in " ".join(first)
    assert f"\nA  run/first, commit {commit[:10]}, of " in out
    assert ["pretrain.batch_size", "256", "256", "64", "64"] in lines
    assert ["pretrain.learning_rate", "0.002", "0.0025", "0.006", "0.006"] in lines
    assert "pretrain.num_steps" not in out
    assert ["align/stages.py", "differs", "differs"] in lines
    assert ["pairs", "kept", *["600"] * 4] in lines and ["share", "kept", *["50.0%"] * 4] in lines
    assert ["digest", "of", "the", "shards", *["d" * 12] * 4] in lines
    assert ["digest", "of", "the", "sets", *["e" * 12] * 4] in lines
    row = next(line for line in out.splitlines() if line.startswith("  concepts/"))
    measured = ["20.0 [10.0-30.0]", "25.0 [15.0-35.0]", "60.0 [50.0-70.0]"]
    assert re.split("  +", row.strip()) == ["concepts/text_to_image/recall@10", *measured]
    assert out.count(measured[2]) == 2
    assert max(map(len, out.splitlines())) <= 100
    page = Path("out/runs.html").read_text()
    assert f"run/{LONG}" in page
    asked = [page.partition(f"<h2 id=which-is-better--a-or-{letter}>")[2].partition("<h2")[0] for letter in "bcd"]
    assert "are not told apart" in asked[0] and all("C is better" not in one for one in (asked[0], asked[2]))
    assert "C is better by 1 of 1 metrics, A by 0;" in asked[1] and "C − A +40.0 points" in asked[1]
    assert [one.count("<svg ") for one in asked] == [1, 1, 1] and "D − A, percentage points" in asked[2]
    ranks = project / "reports/evaluation/ranks.parquet"
    kept = ranks.read_bytes()
    ranks.unlink()
    printed(capsys, "first", ".", "--html", "out/runs.html")
    ranks.write_bytes(kept)
    why = "Which is better, A or B, cannot be said query by query: . has no rank of each query here."
    assert why in Path("out/runs.html").read_text()
    listed = json.loads(printed(capsys, "first", LONG, "--json")[0])["runs"]
    assert listed[1]["code_differs_from_first"] == ["align/stages.py"]
    assert listed[1]["params"]["pretrain.batch_size"] == "64"
    assert json.loads(printed(capsys, listed[1]["mlflow_run"], ".", "--json")[0])["runs"][0] == {
        **listed[1], "code_differs_from_first": [],
    }  # fmt: skip


def test_what_a_run_cost(project, capsys):
    out, _ = printed(capsys, "first", LONG, "--set", "health.price_per_hour=2.5")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "pretrain: device time, h:mm:ss 1:30:00 cached" in lines
    assert "pretrain: pairs/s 1,234 -" in lines and "pretrain: price 3.75 -" in lines
    assert "None is recorded." in printed(capsys, "second", ".")[0]


def test_the_checkout_shows_nothing_of_a_model_that_it_did_not_begin_with(project, capsys):
    before = (project / "params.yaml").read_bytes()
    write_params(project / "params.yaml", {"finetune.from": "imported", "model.embed_width": 320})
    (project / "models/finetuned").mkdir(parents=True)
    (project / "models/finetuned/config.json").write_text(json.dumps({"model": {"embed_width": 24}}))
    parts = ("", "/low", "/high", "/chance")
    for stage in ("pretrain", "finetune"):
        (project / "reports" / stage).mkdir()
        metrics = {f"{stage}/{SCORE}{part}": 0.5 for part in parts}
        (project / "reports" / stage / "metrics.json").write_text(json.dumps(metrics))
    here = json.loads(printed(capsys, "first", ".", "--json")[0])["runs"][1]
    (project / "params.yaml").write_bytes(before)
    assert f"finetune/{SCORE}" in here["metrics"] and f"pretrain/{SCORE}" not in here["metrics"]
    assert not any(key.startswith(("pretrain", "fit_tokenizer")) for key in here["params"])
    assert here["params"]["finetune.batch_size"] == "64"  # inherited
    model = {key: value for key, value in here["params"].items() if key.startswith("model")}
    assert model == {"model.embed_width": "24"}


def test_what_is_missing_is_said(project, capsys):
    tracker = Tracker()
    run = tracker.start_run("align", "elsewhere", tags={REVISION: "f" * 40})
    tracker.end_run(run, status="FAILED")
    out, _ = printed(capsys, "first", "elsewhere")
    assert "unknown: git does not have the commits of both runs here." in out and ", failed" in out
    assert ["pairs", "kept", "600", "-"] in [line.split() for line in out.splitlines()]

    def refused(*words):
        assert main(["compare", *words]) == 1
        return capsys.readouterr().err.strip()

    assert refused("first") == "align: error: align compare first: name two runs or more; `.` is this checkout"
    assert refused(".", "third").startswith("align: error: 'third' is not a run; the newest are: elsewhere, ")
