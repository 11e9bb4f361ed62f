"""Live metrics: where they go."""

import threading

import pytest

from align.errors import RefusedError
from align.services.tracking import live_log
from align.services.tracking.live_log import LiveLog


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", None])
def test_rows_go_to_the_mlflow_of_the_start(tmp_path, monkeypatch, uri):
    """A thread that is slow to begin found no address once, and made a database in the folder of whoever came next."""
    asked = []
    moved, over = threading.Event(), threading.Event()

    def tracker(address):
        moved.wait(100)
        asked.append(address)
        over.set()
        raise RefusedError

    monkeypatch.setattr(live_log, "Tracker", tracker)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    if uri is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with LiveLog("0" * 32, "pretrain") as logger:
        logger({"train/loss": 1.0}, 1)
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.chdir(tmp_path / "other")
        moved.set()
        assert over.wait(100)
    assert asked == [uri or f"sqlite:///{tmp_path}/mlflow.db"]
