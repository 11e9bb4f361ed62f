"""The MLflow run of a pipeline run: its end if it is stopped, its retry, and what stages log into it."""

import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from align.errors import DataError
from align.release.registration.shown import all_metrics
from align.services.tracking.tracker import BRANCH, CACHED_STAGES, ENDED, REVISION, WHY, param_text
from flows import mlflow_run
from flows.dag import Selection, Stage
from flows.run.context import RunContext
from tests.support.params import PARAMS_FILE


class Logged:
    """As a Tracker of which one run is known."""

    def __init__(self):
        self.states = []
        self.started = []

    def runs(self, condition):
        return self.started

    def start_run(self, experiment, name, tags):
        self.started.append(SimpleNamespace(run_id="r", params={}, tags=tags))
        return "r"

    def resume_run(self, run_id):
        self.states.append("RUNNING")

    def set_tags(self, run_id, tags):
        self.states += tags.values()

    def end_run(self, run_id, status):
        self.states.append(status)

    def log_params(self, run_id, params):
        self.started[-1].params |= {name: param_text(value) for name, value in params.items()}

    def page(self, run_id, server):
        return None

    runs_page = page

    def watched(self, run_id):
        return nullcontext()


@pytest.fixture(name="run")
def _run(tmp_path, monkeypatch):
    shutil.copy(PARAMS_FILE, tmp_path)
    monkeypatch.setattr(mlflow_run, "_tags", lambda run: {})
    monkeypatch.setattr(mlflow_run.run_branch, "next_name", lambda root, name: "n")
    return RunContext(root=tmp_path, checkout=tmp_path)


@pytest.fixture(name="tracker")
def _tracker(monkeypatch):
    tracker = Logged()
    monkeypatch.setattr(mlflow_run, "Tracker", lambda uri: tracker)
    return tracker


def test_a_run_that_is_stopped_is_killed_in_mlflow_and_its_retry_continues_it(run, tracker, monkeypatch):
    with pytest.raises(KeyboardInterrupt), mlflow_run.mlflow_run(run):
        raise KeyboardInterrupt  # as Prefect raises it in a run that is cancelled
    tracker.log_params("r", {"set.photos": "digest"})  # it had come that far
    with mlflow_run.mlflow_run(run) as opened:
        assert opened.run_id == "r"
    assert (
        tracker.states == ["cancelled", "cancelled in Prefect", "KILLED", "RUNNING", "FINISHED"]
        and len(tracker.started) == 1
    )
    with mlflow_run.mlflow_run(run.model_copy(update={"tags": {"align.arm": "base"}})):
        assert len(tracker.started) == 2
    monkeypatch.setattr(mlflow_run, "known_params", lambda params: {"model": "other"})
    with mlflow_run.mlflow_run(run):
        assert len(tracker.started) == 3


def test_a_run_that_fails_says_why_in_mlflow(run, tracker):
    for error, why in (
        (DataError("no such\npicture"), "no such picture"),
        (KeyError("x at http://me:secret@host"), "KeyError: 'x at http://host'"),
    ):
        tracker.states = []
        with pytest.raises(type(error)), mlflow_run.mlflow_run(run):
            raise error
        assert tracker.states[-2:] == [why, "FAILED"]


def test_a_run_that_is_refused_before_it_begins_is_listed_with_the_reason(run, tracker):
    mlflow_run.record_refused(run.root, "wrong", DataError("no such\nparameter"))
    assert tracker.started[0].tags == {ENDED: "refused", WHY: "no such parameter"} and tracker.states == ["FAILED"]
    (run.root / "params.yaml").unlink()
    mlflow_run.record_refused(run.root, "wrong", DataError("no params.yaml"))  # raises nothing in its place
    assert len(tracker.started) == 1


def test_each_stage_is_in_mlflow_when_it_has_ended(run, tmp_path, monkeypatch, empty_mlflow):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    monkeypatch.setenv("ALIGN_ROOT", str(tmp_path))
    stages = [Stage(name, "", "data", (), (), (), f"reports/{name}") for name in ("filter", "shard", "pretrain")]
    for stage in stages:  # pretrain's report is that of an earlier run in this checkout
        folder = tmp_path / stage.report
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({f"{stage.name}/keep_rate": 0.5}))
        (folder / "report.json").write_text('{"digest": "d"}')
    run = run.model_copy(update={"chosen": Selection(asked=tuple(stages))})
    warnings = []
    logger = SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(mlflow_run, "get_run_logger", lambda: logger)
    with pytest.raises(KeyboardInterrupt), mlflow_run.mlflow_run(run) as opened:
        inside = run.model_copy(update={"mlflow_run_id": opened.run_id})
        for stage in stages[:2]:
            mlflow_run.log_stage(stage, inside)
        mlflow_run.log_stage(stages[0], run)  # no run is open
        opened.recorded("n-2", "abc", ["filter", "shard"])
        mlflow_run.log_stage(stages[0], run.model_copy(update={"mlflow_run_id": "0" * 32}))
        raise KeyboardInterrupt
    tracker = opened.tracker
    made = tracker.run(opened.run_id)
    assert made.status == "KILLED" and made.tags[ENDED] == "cancelled"
    assert made.name == "n-2" and made.tags[BRANCH] == "run/n-2" and made.tags["align.data_digest"] == "d"
    assert (made.tags[REVISION], made.tags[CACHED_STAGES]) == ("abc", "filter, shard") and made.tags[
        WHY
    ] == "cancelled in Prefect"
    assert made.metrics == {"filter/keep_rate": 0.5}
    assert all_metrics(tracker, opened.run_id) == {"filter/keep_rate": 0.5, "shard/keep_rate": 0.5}
    assert tracker.artifact(opened.run_id, "reports/shard/report.json", tmp_path)
    assert tracker.artifact(opened.run_id, "reports/pretrain/report.json", tmp_path) is None
    assert len(warnings) == 1 and warnings[0].startswith("MLflow does not have the report of filter yet: MLflow at ")
