"""`align runs` over branches whose reports are in DVC's cache, runs in progress, killed and failed ones, and MLflow."""

import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from align.cli import main
from align.config.params import write_params
from align.durable.run_records import RunRecord, hold
from align.pipeline import runs
from align.services.git import git
from align.services.tracking.tracker import ENDED, Tracker
from flows.checkout.run_branch import record
from tests.support.dvc_projects import commit_all, environment, make_repository
from tests.support.params import PARAMS_FILE

RATE = "pretrain.learning_rate"
SCORE = "concepts/text_to_image/recall@10"


def cached(root, data, ending=""):
    """Puts bytes into DVC's cache; returns their md5."""
    md5 = hashlib.md5(data).hexdigest() + ending
    path = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return md5


def finish(root, name, score):
    """A run with this result, as its branch and in DVC's cache."""
    metrics = json.dumps({SCORE + part: score + more for part, more in (("", 0), ("/low", -0.1), ("/high", 0.1))})
    metrics = metrics[:-1] + f', "{SCORE}/chance": 0.02}}'
    outs = []
    for out, file, text in (
        ("reports/evaluation", "metrics.json", metrics),
        ("reports/package", "report.json", json.dumps({"digest": name.ljust(64, "0")})),
    ):
        listing = json.dumps([{"md5": cached(root, text.encode()), "relpath": file}]).encode()
        outs.append(f"    - path: {out}\n      md5: {cached(root, listing, '.dir')}\n")
    (root / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n  all:\n    cmd: x\n    outs:\n{''.join(outs)}")
    record(root, name, f"run {name}")


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory):
    """Runs demo, demo-2 (another rate) and failed ones, one in progress and one that was killed, and their MLflow."""
    root = make_repository(tmp_path_factory.mktemp("runs") / "project", {}, "")
    shutil.copy(PARAMS_FILE, root)
    commit_all(root)
    for rate, score in ((0.002, 0.2), (0.004, 0.6)):
        write_params(root / "params.yaml", {RATE: rate})
        finish(root, "demo", score)
    failed = root / ".align/failed/wide-0a1b2c3d"
    (failed / "reports/evaluation").mkdir(parents=True)
    shutil.copy(root / "params.yaml", failed)
    write_params(failed / "params.yaml", {RATE: 0.5})
    about = {"name": "wide", "commit": "", "state": "failed", "why": "the loss\x1b[31m is inf", "flow_run": "f1"}
    (failed / "run.json").write_text(json.dumps(about))
    first_try = root / ".align/failed/demo-2-f0"  # the retry of its flow run became branch run/demo-2
    first_try.mkdir()
    (first_try / "run.json").write_text(json.dumps(about | {"name": "demo-2", "flow_run": "f0"}))
    os.utime(first_try, (1e9, 1e9))
    work = {"line": "pretrain: step 20 of 80, loss 5.310", "done": 20, "total": 80, "per_s": 0.5}
    (root / ".align/progress.json").write_text(json.dumps({"lines": [], "work": work}))
    held = [hold(RunRecord(name, name, 1, "", "", str(root), str(root), "")) for name in ("now", "gone")]
    held[1].close()
    held.append(hold(RunRecord("promote", "p", 1, "", "", str(root), flow="promote")))  # no run of the pipeline
    here = Path.cwd()
    os.chdir(root)
    try:
        tracker = Tracker()
        for name, attempt, tags, status in (
            (
                "demo-2",
                "f0-1",
                {"align.git_revision": git(root, "rev-parse", "run/demo-2"), "align.flow_run": "f0"},
                "FINISHED",
            ),
            ("wide", "f1-1", {}, "FAILED"),
            ("now", "now-1", {}, None),
            ("theirs", "x-1", {}, None),
            ("stopped", "s-1", {ENDED: "cancelled"}, "KILLED"),
        ):
            run = tracker.start_run("align", name, attempt)
            tracker.set_tags(run, tags)
            tracker.log_metrics(run, {"pretrain/train/device_hours": 1.5})
            if status:
                tracker.end_run(run, status=status)
    finally:
        os.chdir(here)
    yield root
    held[0].close()
    held[2].close()


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
        "demo": "finished", "demo-2": "finished", "wide-0a1b2c3d": "failed", "now": "running",
        "gone": "killed", "theirs": "unknown", "stopped": "cancelled",
    }  # fmt: skip
    assert [run["doing"] for run in answer["runs"] if run["doing"]] == [by_name["now"]["doing"]]
    assert answer["params_that_differ"] == [RATE]
    assert len({frozenset(run) for run in answer["runs"]}) == 1  # the same keys for all
    second = by_name["demo-2"]
    assert second["branch"] == "run/demo-2" and second["commit"] == git(Path.cwd(), "rev-parse", "run/demo-2")
    assert second["metrics"][SCORE] == {"value": 0.6, "low": 0.5, "high": 0.7, "chance": 0.02}
    assert second["params"][RATE] == 0.004 and second["flow_run"] == "f0"
    assert by_name["wide-0a1b2c3d"]["costs"]["pretrain/device_hours"] == 1.5  # a run that failed cost something, too
    assert by_name["wide-0a1b2c3d"]["folder"] == ".align/failed/wide-0a1b2c3d"
    assert by_name["gone"]["why"] == "`align runs --repair` ends it"


def test_the_table(capsys, monkeypatch):
    monkeypatch.setattr(
        runs, "running_services", lambda root: {"prefect": {"url": "http://p"}, "mlflow": {"url": "http://m"}}
    )
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    heads = [line.split()[:3] for line in out.split("\n\n")[0].splitlines()]
    now = heads.pop(1 + next(row for row, head in enumerate(heads) if head[1] == "now"))
    assert now == ["2", "min", "left;"] and "left; pretrain: step 20 of 80, loss 5.310\n" in out
    assert sorted(head[0] for head in heads) == list("ABCDEFG")
    assert ["demo-2", "finished"] in [head[1:] for head in heads] and ["now", "running"] in [head[1:] for head in heads]
    assert RATE in out and "pretrain.num_steps" not in out and "60.0 [50.0-70.0]" in out and "1:30:00" in out
    assert "the loss\\u001b[31m is inf" in out
    assert "http://p/runs/flow-run/f0  http://m/#/experiments/" in out
    assert out.count("http://m/") == out.count("?workflowType=machine_learning") == 5  # the pages for training
    assert max(map(len, out.split("Links")[0].splitlines())) <= 100
    assert main(["runs", "--last", "2"]) == 0
    out = capsys.readouterr().out
    assert "5 older ones are not shown; --last 7 shows all" in out
    assert main(["runs", "--last", "1"]) == 0  # nothing differs, and no empty table says so
    assert "Parameters" not in capsys.readouterr().out


def test_one_run(capsys):
    for name in ("demo-2", "run/demo-2"):
        assert main(["runs", "show", name]) == 0
        out = capsys.readouterr().out
        assert "state      finished" in out and "60.0 [50.0-70.0]" in out and "git switch run/demo-2" in out
    assert [run["name"] for run in listed(capsys, "show", "now")["runs"]] == ["now"]
    assert main(["runs", "show", "nowhere"]) == 1
    assert "'nowhere' is not a run; the newest are: " in capsys.readouterr().err


@pytest.mark.parametrize(("words", "line"), [
    (["show"], "align runs show: name one run"),
    (["show", "a", "b"], "align runs show: name one run"),
    (["--repair", "show"], "takes no other words"),
    (["--last", "0"], "--last 0: expected 1 or more"),
])  # fmt: skip
def test_words_that_do_not_go_together(words, line, capsys):
    assert main(["runs", *words]) == 1
    assert line in capsys.readouterr().err


def test_what_cannot_be_read_is_said_and_the_rest_is_shown(project, capsys):
    git(project, "branch", "run/empty", "HEAD")
    torn = project / ".align/runs/torn-1.lock"
    torn.touch()
    torn.with_suffix(".json").write_bytes(b"{")
    try:
        assert main(["runs", "--json"]) == 0
        done = capsys.readouterr()
        assert "'run/empty' has no dvc.lock" in done.err and "torn-1.json: no record of this version" in done.err
        assert {"empty", "demo", "now"} <= {run["name"] for run in json.loads(done.out)["runs"]}
    finally:
        git(project, "branch", "-D", "run/empty")
        for file in (torn, torn.with_suffix(".json")):
            with suppress(FileNotFoundError):
                file.unlink()


def test_where_there_are_none(tmp_path, monkeypatch, capsys):
    root = make_repository(tmp_path / "new", {}, "")
    shutil.copy(PARAMS_FILE, root)
    monkeypatch.chdir(root)
    assert main(["runs"]) == 0
    assert "there are none yet; `align run --name first` makes one" in capsys.readouterr().err
    assert listed(capsys) == {"schema_version": 1, "params_that_differ": [], "runs": []}
    assert not (root / "mlflow.db").exists()
