"""What a form may name as a suite, and the summary that people see. The model: tests/unit/release/test_measured.py."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from align.errors import AlignError, ConfigError, DataError, ServiceError
from align.release.registration.shown import all_metrics
from align.services.tracking.tracker import ENDED
from flows import evaluate, mlflow_run
from flows.dag import Selection, Stage
from flows.evaluate import suite_file, summary
from flows.tasks.run_context import RunContext
from tests.support.params import PARAMS_FILE, load_params

SUITE = "sets: [{name: photos, path: photos, format: folder, tasks: [zero_shot]}]\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with two suites, one of them in a folder that is a link to it, and a file outside of it."""
    for name in ("checkout/infra/suites/demo.yaml", "checkout/mine/own.yml", "outside.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(SUITE)
    (tmp_path / "checkout/mine/wrong.yaml").write_text("sets: [{name: photos, tasks: [zero_shot]}]\n")
    (tmp_path / "checkout/linked.yaml").symlink_to(tmp_path / "outside.yaml")
    (tmp_path / "scratch").mkdir()
    return tmp_path / "checkout"


def found(asked: str, root: Path) -> Path:
    return suite_file(asked, root, load_params(), root.parent / "scratch")


@pytest.mark.parametrize(
    ("asked", "file"),
    [("demo", "infra/suites/demo.yaml"), (" infra/suites/demo.yaml ", "infra/suites/demo.yaml"),
     ("mine/own.yml", "mine/own.yml"), ("./mine/../mine/own.yml", "mine/own.yml")],
)  # fmt: skip
def test_a_suite_is_a_name_or_a_path(root: Path, asked: str, file: str) -> None:
    assert found(asked, root) == root / file


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("nope", DataError, "suite nope: no such name in infra/suites (there: demo); give one"),
        ("de*", DataError, "suite de*: no such name"),
        ("--set", DataError, "suite --set: no such name"),
        ("mine/own", DataError, "suite mine/own: not the name of a YAML file"),
        ("../outside.yaml", DataError, "../outside.yaml: not in the checkout"),
        ("linked.yaml", DataError, "linked.yaml: not in the checkout"),
        ("/etc/passwd.yaml", DataError, "/etc/passwd.yaml: not in the checkout"),
        ("a\0b/x.yaml", DataError, "not in the checkout"),
        (f"{'x' * 900}/y.yaml", DataError, f"{'x' * 100}: not in the checkout"),
        ("mine/none.yaml", DataError, "suite mine/none.yaml: no such file"),
        ("mine/wrong.yaml", ConfigError, "mine/wrong.yaml: sets.0.path: Field required"),
        ("s3://", DataError, "suite s3://: not the name of a YAML file"),
        ("s3://bucket/folder", DataError, "not the name of a YAML file"),
    ],
)
def test_what_is_no_suite_is_one_line(root: Path, asked: str, error: type[AlignError], said: str) -> None:
    with pytest.raises(error) as raised:
        found(asked, root)
    assert said in str(raised.value) and str(root) not in str(raised.value)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_suite_in_s3_is_read_as_a_copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"s3://b/own.yaml": SUITE, "s3://b/wrong.yaml": "sets: 1\n"}

    class Bucket:
        def open(self, uri: str) -> io.BytesIO:
            if uri not in texts:
                raise DataError("no such object")
            return io.BytesIO(texts[uri].encode())

    monkeypatch.setattr(evaluate, "StoreFiles", lambda config: Bucket())
    assert found("s3://b/own.yaml", root).read_text() == SUITE
    with pytest.raises(ConfigError, match=r"^s3://b/wrong\.yaml: sets: "):
        found("s3://b/wrong.yaml", root)
    with pytest.raises(DataError, match=r"^s3://b/none\.yaml: the suite cannot be read: no such object$"):
        found("s3://b/none.yaml", root)


def test_the_summary_has_the_main_figures_and_no_markup_of_a_form() -> None:
    metrics: dict[str, Any] = {}
    for name, value in (
        ("image_to_text/recall@1", 0.25),
        ("image_to_text/recall@5", 0.5),
        ("frozen/accuracy", 1),
    ):
        metrics |= {f"s/{name}": value, f"s/{name}/low": 0.125, f"s/{name}/high": 0.75}
    metrics["s/image_to_text/recall@1/chance"] = 0.01
    text = summary("a`b|<i>", "champion on demo\n", metrics, "http://127.0.0.1/#/x")
    assert text.splitlines()[0] == r"**`a'b/<i>`**: `champion on demo\n`"
    assert "](http://127.0.0.1/#/x)" in text
    assert "| `s/image_to_text/recall@1` | 25.0% | 12.5% to 75.0% | 1.0% |" in text
    assert "| `s/frozen/accuracy` | 100.0% | 12.5% to 75.0% |  |" in text and "recall@5" not in text


class Logged:
    """As a Tracker of which one run is known; it does not answer for metrics, if that is asked."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.states: list[str] = []
        self.started: list[Any] = []

    def runs(self, condition: str) -> list[Any]:
        return self.started

    def start_run(self, experiment: str, name: str, attempt: str, tags: dict[str, str]) -> str:
        self.started.append(SimpleNamespace(run_id="r", params={}))
        return "r"

    def resume_run(self, run_id: str, attempt: str) -> None:
        self.states.append("RUNNING")

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        self.states += tags.values()

    def end_run(self, run_id: str, status: str) -> None:
        self.states.append(status)

    def log_params(self, run_id: str, params: dict[str, Any]) -> None:
        self.started[-1].params |= {name: str(value) for name, value in params.items()}

    def log_metrics(self, run_id: str, metrics: dict[str, float]) -> None:
        if self.fails:
            raise ServiceError("MLflow at http://h: no answer")


def test_a_run_that_is_stopped_is_killed_in_mlflow_and_its_retry_continues_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, run = Logged(), RunContext(root=root, checkout=root, attempt="1")
    monkeypatch.setattr(mlflow_run, "Tracker", lambda uri: tracker)
    monkeypatch.setattr(mlflow_run, "_tags", lambda run: {})
    with pytest.raises(KeyboardInterrupt), mlflow_run.opened_run(run, "e", "n", {"model": "m"}):
        raise KeyboardInterrupt  # as Prefect raises it in a run that is cancelled
    tracker.log_params("r", {"set.photos": "digest"})  # it had come that far
    with mlflow_run.opened_run(run, "e", "n", {"model": "m"}) as opened:
        assert opened.run_id == "r"
    assert tracker.states == ["cancelled", "KILLED", "RUNNING", "FINISHED"] and len(tracker.started) == 1
    with mlflow_run.opened_run(run, "e", "n", {"model": "other"}):
        assert len(tracker.started) == 2


def test_each_stage_is_in_mlflow_when_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Callable[[Path], str]
) -> None:
    shutil.copy(PARAMS_FILE, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", empty_mlflow(tmp_path))
    monkeypatch.setenv("ALIGN_ROOT", str(tmp_path))
    stages = [Stage(name, "", "data", (), (), (), f"reports/{name}") for name in ("filter", "shard", "pretrain")]
    for stage in stages:  # pretrain's report is that of an earlier run in this checkout
        folder = tmp_path / stage.report
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({f"{stage.name}/keep_rate": 0.5}))
        (folder / "report.json").write_text('{"digest": "d"}')
    run = RunContext(root=tmp_path, checkout=tmp_path, attempt="1", chosen=Selection(asked=tuple(stages)))
    monkeypatch.setattr(mlflow_run, "_tags", lambda run: {})
    warnings: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(mlflow_run, "get_run_logger", lambda: logger)
    with pytest.raises(KeyboardInterrupt), mlflow_run.opened_run(run, "e", "n", {"model": "m"}) as opened:
        inside = run.model_copy(update={"mlflow_run_id": opened.run_id})
        for stage in stages[:2]:
            mlflow_run.log_stage(stage, inside)
        mlflow_run.log_stage(stages[0], run)  # no run is open
        mlflow_run.log_stage(stages[0], run.model_copy(update={"mlflow_run_id": "0" * 32}))
        raise KeyboardInterrupt
    tracker = opened.tracker
    assert tracker.run(opened.run_id).status == "KILLED" and tracker.tags(opened.run_id)[ENDED] == "cancelled"
    assert tracker.metrics(opened.run_id) == {"filter/keep_rate": 0.5}
    assert all_metrics(tracker, opened.run_id) == {"filter/keep_rate": 0.5, "shard/keep_rate": 0.5}
    assert tracker.artifact(opened.run_id, "reports/shard/report.json", tmp_path)
    assert tracker.artifact(opened.run_id, "reports/pretrain/report.json", tmp_path) is None
    assert len(warnings) == 1 and warnings[0].startswith("MLflow does not have the report of filter yet: MLflow at ")


def test_a_report_that_mlflow_does_not_take_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = root.parent / "scratch/reports/evaluation"
    report.mkdir(parents=True)
    (report / "metrics.json").write_text('{"photos/knn/accuracy": 0.5}')
    (report / "report.json").write_text('{"sets": {"photos": {"digest": "d"}}, "evaluation_digest": "e"}')
    monkeypatch.setattr(evaluate, "runtime", SimpleNamespace(flow_run=SimpleNamespace(id="0123456789")))
    tracker = Logged(fails=True)
    tracker.start_run("", "", "", {})
    opened: Any = SimpleNamespace(tracker=tracker, run_id="r")
    with pytest.raises(ServiceError) as raised:
        evaluate._logged(root, opened, report.parent, {"model": "m"}, "my model: 1", ())
    kept = ".align/failed/my-model--1-01234567/reports/evaluation"
    assert str(raised.value) == f"MLflow at http://h: no answer; the report was made, and is kept in {kept}"
    assert (root / kept / "metrics.json").is_file() and not report.exists()
    assert tracker.started[0].params == {"model": "m", "set.photos": "d", "sets": "e"}
