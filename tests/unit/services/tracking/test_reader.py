"""MLflow's database file, read without MLflow: what it says is what MLflow says."""

import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from align.errors import AlignError
from align.services.tracking.reader import StoredRuns, reader
from align.services.tracking.registry import CANDIDATE, Version
from align.services.tracking.tracker import Tracker
from tests.support.lying_s3 import lying


def test_it_says_what_mlflow_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_mlflow: Callable[[Path], str]
) -> None:
    empty_mlflow(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker()
    runs = [tracker.start_run("ours", f"run {number}", tags={"align.digest": "same"}) for number in range(4)]
    other = tracker.start_run("theirs", "other", tags={"align.digest": "same"})
    for run in (*runs[:3], other):
        tracker.log_params(run, {"model.width": 3, "name": "é"})
        tracker.log_metrics(run, {"pretrain/train/device_hours": 1.5, "loss": math.nan})
    tracker.log_series(runs[0], [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    tracker.end_run(runs[0])
    tracker.end_run(runs[1])
    tracker.end_run(runs[2], status="KILLED")
    tracker.end_run(other)
    (tmp_path / "model").mkdir()
    tracker.log_folder(runs[0], tmp_path / "model", "model")
    for number in range(3):
        version = tracker.registry.create_version("align", runs[0], "model", {"align.dvc_lock": str(number)})
    tracker.registry.set_alias(version, CANDIDATE)
    tracker._client.delete_model_version("align", "2")

    view = (["val/recall@1"], ["pretrain.seed"], ["pretrain/loss"])
    tracker.save_view("ours", *view)

    stored = reader()
    assert isinstance(stored, StoredRuns)
    assert stored.has_view("ours", *view) and not stored.has_view("ours", ["val/recall@5"], *view[1:])
    assert not stored.has_view("theirs", *view)
    tracker._client.delete_run(runs[1])
    assert stored.runs() == tracker.runs() and len(stored.runs()) == 4
    assert stored.find_runs("ours", "align.digest", "same") == tracker.find_runs("ours", "align.digest", "same")
    assert stored.find_runs("ours", "align.digest", "same") == [runs[0]]
    assert stored.tags(runs[0]) == tracker.tags(runs[0])
    assert stored.metrics(runs[0]) == tracker.metrics(runs[0]) and math.isnan(stored.metrics(other)["loss"])
    assert stored.registry.versions("align") == tracker.registry.versions("align")
    assert [version.number for version in stored.registry.versions("align")] == [1, 3]
    assert stored.registry.aliases("align") == tracker.registry.aliases("align") == {CANDIDATE: 3}
    assert stored.registry.aliases("other") == {} and stored.uri == tracker.uri

    with closing(sqlite3.connect("mlflow.db")) as connection, connection:
        connection.execute("ALTER TABLE model_versions RENAME COLUMN current_stage TO stage")
    assert isinstance(reader(), Tracker)  # tables of another MLflow: which says so


VERSION = {
    "name": "<script>", "version": "3", "run_id": "../../x", "tags": [{"key": "align.model_digest", "value": "../"}],
}  # fmt: skip
RUN = {"info": {"run_id": "x", "artifact_uri": "file:///etc", "status": "?", "start_time": "never"}, "data": {}}
ODD = {"model_version": VERSION | {"version": "../x"}, "model_versions": [VERSION | {"version": "NaN"}], "runs": [RUN],
       "registered_model": {"name": "a", "aliases": [{"alias": "champion", "version": "-5"}]},
       "experiments": [{"experiment_id": "1", "name": "a", "artifact_location": "file:///etc"}]}  # fmt: skip
ANSWERS: dict[str, tuple[int, dict[str, str | None], bytes]] = {
    "a page": (200, {"Content-Type": "text/html"}, b"<html>log in</html>"), "a list": (200, {}, b"[]"),
    "null": (200, {}, b"null"), "no object": (200, {}, b"{}"), "deep": (200, {}, b"[" * 200_000),
    "other types": (200, {}, b'{"model_version": 5, "runs": 7, "experiments": 3, "model_versions": "x"}'),
    "odd values": (200, {}, json.dumps(ODD).encode()), "cut off": (200, {"Content-Length": "100"}, b"{"),
    "no text": (200, {}, b"\xff\xfe{}"), "not gzip": (200, {"Content-Encoding": "gzip"}, b"{}"),
    "to a file": (302, {"Location": "file:///etc/passwd"}, b""), "failed": (500, {}, b"x" * 1000),
    "hostile": (200, {}, json.dumps({"model_version": VERSION, "model_versions": [VERSION], "run": RUN}).encode()),
    "listing": (200, {}, b'{"files": [{"path": "../../evil", "is_dir": false}, {"path": "/evil", "is_dir": true}]}'),
}  # fmt: skip
QUESTIONS: tuple[Callable[[Tracker, Path], object], ...] = (
    lambda tracker, folder: tracker.registry.version_at("align", "champion"),
    lambda tracker, folder: tracker.registry.versions("align"),
    lambda tracker, folder: tracker.registry.aliases("align"),
    lambda tracker, folder: tracker.registry.champion_state("align"),
    lambda tracker, folder: tracker.runs(),
    lambda tracker, folder: tracker.metrics("r"),
    lambda tracker, folder: tracker.tags("r"),
    lambda tracker, folder: tracker.registry.download(Version("a", 1, "r", {}), "index/../../../../evil", folder),
    lambda tracker, folder: tracker.registry.download(Version("a", 1, "r", {}), "index", folder),
)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_lie_is_an_answer_or_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, dict[str, str | None], bytes]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = tmp_path / "deep/er/scratch"
    folder.mkdir(parents=True)
    with lying(lambda _: answer) as url:
        for question in QUESTIONS:
            try:
                question(Tracker(url), folder)
            except AlignError as refused:
                assert "\n" not in str(refused)
    assert [path for path in tmp_path.rglob("*") if path.name == "evil" or path.is_file()] == []
