"""`align runs` over MLflow's runs in every state, two of them with a record whose lock tells that they live or died."""

import json
import os
import shutil
from pathlib import Path

import pytest

from align.cli import main
from align.durable.run_records import RunRecord, hold
from align.pipeline import runs
from align.release.registration.shown import tables
from align.services.tracking.tracker import (
    BRANCH,
    CACHED_STAGES,
    ENDED,
    EVALUATION,
    FLOW_RUN,
    REVISION,
    SOURCE,
    WHY,
    Tracker,
)
from tests.support.dvc_projects import environment, make_repository
from tests.support.params import PARAMS_FILE

RATE = "pretrain.learning_rate"
SCORE = "concepts/text_to_image/recall@10"
COMMIT = "c" * 40
#: Name -> the learning rate, the tags, the status.
RUNS = {
    "demo": (0.002, {BRANCH: "run/demo", REVISION: COMMIT, "align.data_digest": "d" * 64}, "FINISHED"),
    "demo-2": (
        0.004,
        {BRANCH: "run/demo-2", REVISION: COMMIT, FLOW_RUN: "f0", CACHED_STAGES: "ingest, finetune"},
        "FINISHED",
    ),
    "wide": (0.5, {WHY: "the loss\x1b[31m is inf", FLOW_RUN: "f1"}, "FAILED"),
    "now": (0.004, {}, None),
    "gone": (0.004, {}, None),
    "theirs": (0.004, {}, None),
    "stopped": (0.004, {ENDED: "cancelled", WHY: "stopped by SIGINT in pretrain"}, "KILLED"),
    "odd": (0.004, {ENDED: "refused", WHY: "filter.min_words = 'x'"}, "FAILED"),
    "killed": (0.004, {}, "KILLED"),
    "measured": (0.004, {SOURCE: EVALUATION}, "FINISHED"),
}


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory):
    root = make_repository(tmp_path_factory.mktemp("runs") / "project", {}, "")
    shutil.copy(PARAMS_FILE, root)
    work = {"line": "pretrain: step 20 of 80, loss 5.310", "done": 20, "total": 80, "per_s": 0.5}
    (root / ".align").mkdir(exist_ok=True)
    (root / ".align/progress.json").write_text(json.dumps({"lines": [], "work": work}))
    (root / "reports/evaluation").mkdir(parents=True)
    metrics = {SCORE: 0.6, f"{SCORE}/low": 0.5, f"{SCORE}/high": 0.7, f"{SCORE}/chance": 0.02, "evaluate/sets": 1}
    (root / "reports/evaluation/metrics.json").write_text(json.dumps(metrics))
    here = Path.cwd()
    os.chdir(root)
    try:
        tracker, live = Tracker(), []
        for name, (rate, tags, status) in RUNS.items():
            run = tracker.start_run("align", name, tags)
            if name in {"now", "gone"}:
                held = hold(root, RunRecord(name, name, mlflow_run=run))
                held._file.close() if name == "gone" else live.append(held)
            tracker.log_params(run, {RATE: rate, "pretrain.seed": 0})
            tracker.log_metrics(run, {"pretrain/train/device_hours": 1.5})
            if name == "demo-2":
                tracker.log_tables(run, tables([root / "reports/evaluation"]))
            if status:
                tracker.end_run(run, status=status)
    finally:
        os.chdir(here)
    yield root
    live[0].remove()


@pytest.fixture(name="here", autouse=True)
def _here(project, monkeypatch):
    for name, value in environment(project, {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(project)


def listed(capsys, *words):
    assert main(["runs", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_run_with_its_state(capsys):
    answer = listed(capsys)
    by_name = {run["name"]: run for run in answer["runs"]}
    assert {name: run["state"] for name, run in by_name.items()} == {
        "demo": "finished", "demo-2": "finished", "wide": "failed", "now": "running", "gone": "killed",
        "theirs": "unknown", "stopped": "cancelled", "killed": "killed", "odd": "refused",
    }  # fmt: skip
    assert [run["doing"] for run in answer["runs"] if run["doing"]] == [by_name["now"]["doing"]]
    assert answer["params_that_differ"] == [RATE]
    assert len({frozenset(run) for run in answer["runs"]}) == 1  # the same keys for all
    second = by_name["demo-2"]
    assert second["branch"] == "run/demo-2" and second["commit"] == COMMIT and second["mlflow_run"]
    assert second["metrics"] == {SCORE: {"value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.02}}
    assert second["params"] == {RATE: "0.004", "pretrain.seed": "0"} and second["flow_run"] == "f0"
    assert second["costs"] == {"pretrain/device_hours": 1.5, "finetune/device_hours": "cached"}
    assert by_name["demo"]["digests"] == {"data": "d" * 64}
    assert by_name["wide"]["costs"]["pretrain/device_hours"] == 1.5  # a run that failed cost something, too
    assert by_name["gone"]["why"] == "its process ended without a word"
    assert by_name["stopped"]["why"] == "stopped by SIGINT in pretrain"
    assert (by_name["odd"]["state"], by_name["odd"]["why"]) == ("refused", "filter.min_words = 'x'")


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(
        runs, "running_services", lambda root: {"prefect": {"url": "http://p"}, "mlflow": {"url": "http://m"}}
    )
    assert main(["runs"]) == 0
    out, err = capsys.readouterr()
    assert "runs: run 'gone' was killed; `align runs --repair` ends it in Prefect and MLflow" in err
    assert "stopped by SIGINT in pretrain" in out and "filter.min_words = 'x'" in out
    heads = [line.split()[:3] for line in out.split("\n\n")[0].splitlines()]
    now = heads.pop(1 + next(row for row, head in enumerate(heads) if head[1] == "now"))
    assert now == ["2", "min", "left;"] and "left; pretrain: step 20 of 80, loss 5.310\n" in out
    assert sorted(head[0] for head in heads) == list("ABCDEFGHI")
    assert ["demo-2", "finished"] in [head[1:] for head in heads] and ["now", "running"] in [head[1:] for head in heads]
    assert RATE in out and "pretrain.seed" not in out and "60.0 [50.0-70.0]" in out and "1:30:00" in out
    assert "the loss\\u001b[31m is inf" in out
    assert "http://p/runs/flow-run/f0  http://m/#/experiments/" in out
    assert out.count("http://m/") == out.count("?workflowType=machine_learning") == 9  # the pages for training
    assert max(map(len, out.split("Links")[0].splitlines())) <= 100
    assert main(["runs", "--last", "2"]) == 0
    out = capsys.readouterr().out
    assert "7 older ones are not shown; --last 9 shows all" in out
    assert main(["runs", "--last", "1"]) == 0  # nothing differs, and no empty table says so
    assert "Parameters" not in capsys.readouterr().out


def test_one_run(capsys):
    run_id = next(run["mlflow_run"] for run in listed(capsys)["runs"] if run["name"] == "demo-2")
    for name in ("demo-2", "run/demo-2", "f0", run_id[:8]):
        assert main(["runs", "show", name]) == 0
        out = capsys.readouterr().out
        assert "state      finished" in out and "60.0 [50.0-70.0]" in out and "git switch run/demo-2" in out
    assert [run["name"] for run in listed(capsys, "show", "now")["runs"]] == ["now"]
    assert main(["runs", "show", "nowhere"]) == 1
    assert "'nowhere' is not a run; the newest are: " in capsys.readouterr().err
    assert main(["compare", "/", "demo-2"]) == 1
    assert "'/' is a folder: models are compared by `align evaluate --compare A B`" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "line"), [
    (["show"], "align runs show: name one run"),
    (["show", "a", "b"], "align runs show: name one run"),
    (["--repair", "show"], "takes no other words"),
    (["--last", "0"], "--last 0: expected 1 or more"),
])  # fmt: skip
def test_words_that_do_not_go_together(words, line, capsys):
    assert main(["runs", *words]) == 1
    assert line in capsys.readouterr().err


def test_a_record_that_cannot_be_read_is_said_and_the_rest_is_shown(project, capsys):
    torn = project / ".align/runs/torn-1.json"
    torn.write_bytes(b"{")
    try:
        assert main(["runs", "--json"]) == 0
        done = capsys.readouterr()
        assert "torn-1.json: no record of a run" in done.err
        assert {"demo", "now"} <= {run["name"] for run in json.loads(done.out)["runs"]}
    finally:
        torn.unlink()


def test_without_mlflow_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["runs"]) == 1
    assert "align: error: MLflow at http://127.0.0.1:9: " in capsys.readouterr().err


def test_where_there_are_none(tmp_path, monkeypatch, capsys):
    root = make_repository(tmp_path / "new", {}, "")
    shutil.copy(PARAMS_FILE, root)
    monkeypatch.chdir(root)
    assert main(["runs"]) == 0
    assert "there are none yet; `align run --name first` makes one" in capsys.readouterr().err
    assert listed(capsys) == {"schema_version": 1, "params_that_differ": [], "runs": []}
    assert not (root / "mlflow.db").exists()
