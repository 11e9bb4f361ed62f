"""MLflow's database file, read without MLflow: what it says is what MLflow says."""

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from align.services.tracking.reader import StoredRuns, reader
from align.services.tracking.registry import CANDIDATE
from align.services.tracking.tracker import Tracker


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
