"""The form on a real server: what it refuses, what a run refuses at once, and a run's page."""

import json
import shutil
import time
import urllib.error

import pytest

from align.config.params import write_params
from align.release.registration.shown import all_metrics
from align.services.tracking.tracker import Tracker
from tests.support import tiny_model, wait_until
from tests.support.colours import COLOURS, square
from tests.support.dvc_projects import commit_all
from tests.support.local_stack import ENDS, PATIENCE_S
from tests.support.suites import suite

pytestmark = pytest.mark.shared_stack

SUITE = "infra/suites/squares.yaml"


def artifacts(stack, run):
    """Key -> newest artifact of the flow run itself."""
    found = stack.ask("/artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "CREATED_DESC"})
    found = [one for one in found if one["key"]]  # Prefect keeps a state's result as one without a key
    assert len({one["key"] for one in found}) == len(found), "an artifact was made twice, not updated"
    return {one["key"]: one for one in found}


@pytest.mark.parametrize(("key", "value", "message"), [
    ("promote.metrics", ["recall@10"], "promote.metrics: 'recall@10' is measured for no set"),
    ("filter.min_word", 4, "unknown parameter 'filter.min_word' (not in params.yaml); did you mean filter.min_words?"),
])  # fmt: skip
def test_a_wrong_value_of_any_stage_starts_nothing(stack, key, value, message):
    run = stack.start({"name": "wrong", "overrides": {key: value}})
    assert stack.wait_for(run, *ENDS) == "FAILED"
    ended = stack.ask(f"/flow_runs/{run}")
    assert message in ended["state"]["message"] and "\n" not in ended["state"]["message"]
    assert stack.states("wrong") == {}
    reason = f"Failed: {ended['state']['message'].partition('ConfigError: ')[2]}"
    wait_until(lambda: stack.logs(run)[-1] == reason, 20, says=lambda: (reason, stack.logs(run)))
    [listed] = [one for one in json.loads(stack.align("runs", "--json").stdout)["runs"] if one["flow_run"] == run]
    assert (listed["state"], listed["name"]) == ("refused", "wrong") and message in listed["why"]
    assert not list(stack.root.glob(".align/worktrees/*"))
    assert artifacts(stack, run) == {}


def test_the_page_of_a_run_shows_its_progress_and_where_to_look(stack):
    request = {"name": "page", "seed": 21, "overrides": {"pretrain.weight_decay": PATIENCE_S + 300.0}}
    run = stack.start(request)
    deadline, shown = time.monotonic() + 300, {}
    while time.monotonic() < deadline and "3, pretrain: step" not in str(shown.get("progress")):
        time.sleep(1)
        shown = artifacts(stack, run)
    (stack.root / "checkpoints").mkdir(exist_ok=True)
    (stack.root / "checkpoints/enough-21").touch()  # the trainer may end
    assert "stage 2 of 3, pretrain: step 1 of 4 (6 s left)" in shown["progress"]["description"]
    assert shown["progress"]["data"] == 25.0
    assert f"[MLflow]({stack.mlflow}/#/experiments/" in shown["progress"]["description"]
    assert "| pretrain | **stale** |" in shown["plan"]["data"]
    assert stack.wait_for(run, *ENDS) == "COMPLETED"
    wait_until(
        lambda: stack.logs(run)[-1].startswith("Completed: run/page; "), 20, says=lambda: stack.logs(run)
    )  # the last line is the result
    shown = artifacts(stack, run)
    page = shown["progress"]["description"]
    assert shown["progress"]["data"] == 100.0 and shown.keys() == {"plan", "progress", "summary"}
    assert "branch: run/page (" in page and "registered: register" in page and "the run is complete" in page


@pytest.fixture(scope="module")
def measurable(stack, tmp_path_factory):
    """Squares as a suite, and a model: models/ours, and version 1 of another registered model, its champion.

    Not of `stub`, whose champion the search service would load.
    """
    write_params(stack.root / "params.yaml", {"register.model_name": "measured"})
    model = tiny_model.write(tmp_path_factory.mktemp("model"))
    (stack.root / "models").mkdir(exist_ok=True)
    shutil.copytree(model, stack.root / "models/ours")
    for split, shade in (("train", 0), ("test", 20)):
        for name in COLOURS:
            folder = stack.root / "squares" / split / name
            folder.mkdir(parents=True)
            (folder / "1.jpg").write_bytes(square(name, shade=shade))
    (stack.root / "infra/suites").mkdir(parents=True)
    entry = {"name": "squares", "path": "squares", "format": "folder", "tasks": ["zero_shot", "knn"]}
    suite(stack.root / "infra/suites", entry).rename(stack.root / SUITE)
    commit_all(stack.root, "measurable")  # a checkout with changes would refuse the runs of the other tests
    tracker = Tracker(f"sqlite:///{stack.root}/mlflow.db")
    made = tracker.start_run("another experiment", "made")
    packaged = tmp_path_factory.mktemp("packaged")
    shutil.copytree(model, packaged / "artifacts/abc")
    (packaged / "MLmodel").touch()
    tracker.log_folder(made, packaged, "model")
    tracker.end_run(made)
    tracker.registry.set_alias(tracker.registry.create_version("measured", made, "model", {}), "champion")
    return tracker


def measure(stack, name=None, **form):
    """A click on `evaluate`, perhaps with a Run Name; the run's id."""
    return stack.click("evaluate", parameters=form, **({"name": name} if name else {}))


def test_a_model_is_measured_below_the_run_that_made_it(stack, measurable):
    """Two at once on the same embeddings; one of a version, one of a folder whose run is not known."""
    asked = [
        measure(stack, suite=SUITE, name="by `alias` | <b>"),
        measure(stack, suite=SUITE, model="models/ours"),
    ]
    for run in asked:
        assert stack.wait_for(run, *ENDS) == "COMPLETED", stack.logs(run)
    first, second = (
        measurable.runs(f"tags.`align.flow_run` = '{run}'")[0] for run in asked
    )  # fmt: skip
    parent = measurable.registry.versions("measured")[0].run_id
    assert first.tags["mlflow.parentRunId"] == parent and first.experiment_id == measurable.run(parent).experiment_id
    assert "mlflow.parentRunId" not in second.tags and second.experiment_id != first.experiment_id
    assert (first.status, second.status) == ("FINISHED", "FINISHED")
    assert (first.name, second.name) == ("by `alias` | <b>", stack.ask(f"/flow_runs/{asked[1]}")["name"])
    assert stack.ask(f"/flow_runs/{asked[0]}")["name"] == first.name  # a run has one name
    assert first.params["model"] == "measured version 1" and second.params["model"] == "models/ours"
    same = ("model_digest", "suite", "suite_digest", "set.squares", "sets", "evaluate.seed")
    assert [first.params[name] for name in same] == [second.params[name] for name in same]

    metrics = all_metrics(measurable, first.run_id)
    assert metrics == all_metrics(measurable, second.run_id)
    shown = measurable.run(first.run_id).metrics
    assert len(shown) <= 8 and shown.items() <= metrics.items()
    assert {"squares/zero_shot/accuracy", "squares/knn/accuracy", "squares/knn/accuracy/low"} <= metrics.keys()
    files = stack.root / "mlartifacts/another experiment" / first.run_id / "artifacts"
    names = {path.relative_to(files).as_posix().partition("+")[0].partition("%")[0] for path in files.rglob("*")}
    assert {"reports/evaluation/report.html", "reports/evaluation/ranks.parquet", "tables/metrics.json",
            "images/squares~confusion"} <= names  # fmt: skip

    shown = artifacts(stack, asked[0])
    assert shown.keys() == {"progress", "summary"}
    said = shown["summary"]["data"]
    assert "evaluate: squares/knn/accuracy " in said and said.startswith("~~~~") and said.count("~~~~") == 2
    assert f"/runs/{first.run_id}" in said
    assert any(line.startswith("evaluate: squares: 4 pictures in 4 classes") for line in stack.logs(asked[0]))
    assert not list(stack.root.glob("reports/evaluation"))  # the checkout's own report is another


def test_a_wrong_name_is_one_line_before_anything_is_measured(stack, measurable):
    run = measure(stack, suite=SUITE, model="models:/measured/8")
    assert stack.wait_for(run, *ENDS) == "FAILED"
    message = stack.ask(f"/flow_runs/{run}")["state"]["message"]
    assert "models:/measured/8: no such version in MLflow" in message and "Traceback" not in "".join(stack.logs(run))
    assert measurable.runs(f"tags.`align.flow_run` = '{run}'") == [] and "summary" not in artifacts(stack, run)
    assert not any(line.startswith("evaluate: ") for line in stack.logs(run))


def test_the_server_refuses_a_login_and_an_empty_field(stack):
    for form in ({"suite": "s3://me:secret@bucket/x.yaml"}, {"suite": " "}, {"suite": "demo", "model": "x" * 2000}):
        with pytest.raises(urllib.error.HTTPError, match="409"):
            measure(stack, **form)
