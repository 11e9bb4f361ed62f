"""`align evaluate --log`: which model a person names, and what becomes of the report."""

import shutil
from pathlib import Path

import pytest

from align.cli import main
from align.errors import ServiceError
from align.pipeline import logged_evaluation
from align.search import given_model
from align.services.tracking.registry import Version
from tests.support import tiny_model
from tests.support.params import PARAMS_FILE

SUITE = "sets: [{name: photos, path: photos, format: folder, tasks: [zero_shot]}]\n"


class Silent:
    """As a Tracker that takes the parameters of a run, and then does not answer."""

    def __init__(self):
        self.params, self.tags, self.states = {}, {}, []

    def start_run(self, experiment, name, tags):
        self.tags |= tags
        self.states.append(f"{name} started")
        return "r"

    def log_params(self, run_id, params):
        self.params |= params

    def log_metrics(self, run_id, metrics):
        raise ServiceError("MLflow at http://h: no answer")

    def end_run(self, run_id, status):
        self.states.append(status)

    def model_files(self, version, folder):
        return Path(shutil.copytree("model", folder / "model"))


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    """MLflow, which has version 7; the working directory is a checkout with a model, a suite, and a wrong one."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(PARAMS_FILE, "params.yaml")
    Path("demo.yaml").write_text(SUITE)
    Path("wrong.yaml").write_text("sets: [{name: photos, tasks: [zero_shot]}]\n")
    Path("empty").mkdir()
    tiny_model.write(tmp_path)
    tracker = Silent()
    monkeypatch.setattr(logged_evaluation, "Tracker", lambda: tracker)
    monkeypatch.setattr(given_model, "_registered", lambda source: (tracker, Version("align", 7, "r7", {})))
    return tracker


def log(*arguments, suite="demo.yaml"):
    return main(["evaluate", "--set", f"paths.evaluation={suite}", *arguments])


@pytest.mark.parametrize(("arguments", "suite", "said"), [
    (["--log"], "demo.yaml", "--log: name the model by --model"),
    (["--model", "model", "--log", "mine", "--reports", "r"], "demo.yaml", "leave --reports out"),
    (["--model", "none/such", "--log"], "demo.yaml", "none/such: no such folder"),
    (["--model", "x/" + "x" * 1000, "--log"], "demo.yaml", "x: no such folder"),
    (["--model", "empty", "--log"], "demo.yaml", "no model here (config.json is missing)"),
    (["--model", "model", "--log"], "wrong.yaml", "wrong.yaml: sets.0.path: Field required"),
    (["--model", "model", "--log"], "none.yaml", "none.yaml: no such file"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(tracker, capsys, arguments, suite, said):
    assert log(*arguments, suite=suite) == 1
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[-1] and not [line for line in lines[:-1] if "in a run of its own" not in line]
    assert tracker.states == [] and not list(Path().glob(".align/*"))


@pytest.mark.parametrize(
    ("model", "called", "tags"), [("model", "model", {}), ("champion", "align version 7", {"mlflow.parentRunId": "r7"})]
)
def test_a_report_that_mlflow_does_not_take_is_kept(tracker, monkeypatch, capsys, model, called, tags):
    def measure(params, args):
        assert (args.model / "model.safetensors").is_file()
        args.reports.mkdir(parents=True)
        (args.reports / "metrics.json").write_text('{"photos/knn/accuracy": 0.5}')
        (args.reports / "report.json").write_text('{"sets": {"photos": {"digest": "d"}}, "evaluation_digest": "e"}')

    monkeypatch.setattr(logged_evaluation.evaluate, "main", measure)
    assert log("--model", model, "--log") == 1
    [kept] = Path().glob(".align/evaluations/*")
    said = "MLflow at http://h: no answer; the report was made, and is kept in"
    assert f"{said} {kept}" in capsys.readouterr().err
    assert (kept / "evaluation/metrics.json").is_file()
    assert tracker.states == [f"{called} on demo.yaml started", "FAILED"] and tags.items() <= tracker.tags.items()
    assert ("mlflow.parentRunId" in tracker.tags) == bool(tags)
    assert (tracker.params["suite"], tracker.params["set.photos"], tracker.params["sets"]) == ("demo.yaml", "d", "e")
    assert tracker.params["model"] == called and "evaluate.seed" in tracker.params
