"""Live metrics with a real MLflow behind a network that fails."""

import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest
from mlflow import MlflowClient

from align.errors import RefusedError, ServiceError, TrainingError
from align.services.tracking import live_log
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker, metric_name
from tests.support import killing, training_data, wait_until
from tests.support.relay import Relay
from tests.support.training_data import RECIPE
from tests.support.training_project import write_project

LOSS = "pretrain/train/loss"


@pytest.fixture
def relay(mlflow_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    with Relay(mlflow_server) as relay:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", relay.uri)
        yield relay


@pytest.fixture
def run_id(mlflow_server: str) -> str:
    return Tracker(mlflow_server).start_run("live", "a run")


def history(server: str, run_id: str, name: str = LOSS) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in MlflowClient(server).get_metric_history(run_id, name))


def wait_for(server: str, run_id: str, step: int) -> None:
    wait_until(lambda: step in dict(history(server, run_id)), says=lambda: f"step {step} did not arrive", pause_s=0.1)


class Said:
    """The text on stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys, self.text = capsys, ""

    def count(self, words: str) -> int:
        self.text += self._capsys.readouterr().err
        return self.text.count(words)

    def wait_for(self, words: str) -> None:
        wait_until(lambda: self.count(words), says=lambda: f"{words!r} was not printed, but {self.text!r}")


@pytest.mark.parametrize("outage", ["cut", "loses answers"])
def test_an_outage_costs_no_row_and_doubles_none(
    relay: Relay, mlflow_server: str, run_id: str, tmp_path: Path, outage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said, began = Said(capsys), time.time() * 1000
    logger = pickle.loads(pickle.dumps(LiveLog(run_id, "pretrain", tmp_path / "live.jsonl")))
    with logger:
        logger({"train/loss": 1.5}, 10)
        wait_for(mlflow_server, run_id, 10)
        relay.set(outage)  # type: ignore[arg-type]
        logger({"train/loss": 2.5, "val/image_to_text/recall@1": 0.5}, 20)
        said.wait_for("training continues, its rows wait in")
        logger({"train/loss": 3.5}, 30)
        back = time.time() * 1000
        relay.set("open")
        wait_for(mlflow_server, run_id, 30)
        said.wait_for("MLflow is back")
        logger({"train/loss": 4.5}, 40)
    assert history(mlflow_server, run_id) == [(10, 1.5), (20, 2.5), (30, 3.5), (40, 4.5)]
    assert history(mlflow_server, run_id, "pretrain/val/image_to_text/recall_at_1") == [(20, 0.5)]
    assert (relay.num_lost > 0) == (outage == "loses answers")
    assert said.count("training continues") == said.count("MLflow is back") == 1
    # a row that had arrived without an answer is not delivered again; on a busy machine both had
    wanted = (0, 1) if relay.num_lost else (2,)
    assert sum(said.count(f"MLflow is back, {number} rows delivered") for number in wanted) == 1
    (_, held, *_) = sorted(MlflowClient(mlflow_server).get_metric_history(run_id, LOSS), key=lambda point: point.step)
    assert began <= held.timestamp <= back  # the time of the step, not of its arrival
    assert Tracker(mlflow_server).last_steps(run_id)[LOSS] == 40


def _log_and_die(run_id: str, journal: Path) -> None:
    logger = LiveLog(run_id, "pretrain", journal)
    with logger:
        for step in range(1, 8):
            logger({"train/loss": float(step)}, step)
        os.kill(os.getpid(), 9)


def test_rows_of_a_killed_process_are_delivered_by_the_next(
    relay: Relay, mlflow_server: str, run_id: str, tmp_path: Path
) -> None:
    journal = tmp_path / "live.jsonl"
    relay.set("cut")
    process = get_context("spawn").Process(target=_log_and_die, args=(run_id, journal))
    process.start()
    process.join(60)
    assert process.exitcode == -9 and history(mlflow_server, run_id) == []
    relay.set("open")
    with LiveLog(run_id, "pretrain", journal) as again:
        for step in range(5, 10):  # from the checkpoint at step 4
            again({"train/loss": float(step)}, step)
    whole = [(step, float(step)) for step in range(1, 10)]
    assert history(mlflow_server, run_id) == whole
    # resumed on another day, into another run: that has the whole curve
    another = Tracker(mlflow_server).start_run("live", "another run")
    with LiveLog(another, "pretrain", journal) as later:
        later({"train/loss": 10.0}, 10)
    assert history(mlflow_server, another) == [*whole, (10, 10.0)]
    assert history(mlflow_server, run_id) == whole


def test_a_run_that_was_deleted_ends_live_logging_with_one_warning(
    mlflow_server: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 600.0)  # longer than a test may take
    said = Said(capsys)
    MlflowClient(mlflow_server).delete_run(run_id)
    for gone in (run_id, "0" * 32):
        with pytest.raises(RefusedError, match=f"MLflow at {mlflow_server} refuses: "):
            Tracker().log_rows(gone, [{"step": 1, "loss": 1.0}])
        with LiveLog(gone, "pretrain", tmp_path / f"{gone}.jsonl") as logger:
            logger({"train/loss": 1.0}, 1)
            said.wait_for(f"live logging stopped, training continues: MLflow at {mlflow_server} refuses")
            logger({"train/loss": 1.0}, 2)
        assert said.count("training continues") == 1
        said.text = ""


def test_the_end_of_training_waits_for_mlflow_but_not_for_ever(
    relay: Relay, mlflow_server: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    said = Said(capsys)
    relay.set("hangs")
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 3.0)
    start = time.monotonic()
    with LiveLog(run_id, "pretrain", tmp_path / "live.jsonl") as logger:
        logger({"train/loss": 1.0}, 1)
    assert time.monotonic() - start >= 3
    assert said.count("MLflow did not take the last rows in time; they stay in") == 1
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 600.0)  # one that failed is resumed: nothing to wait for
    with pytest.raises(TrainingError), LiveLog(run_id, "pretrain", tmp_path / "live.jsonl"):
        raise TrainingError
    relay.set("open")
    with LiveLog(run_id, "pretrain", tmp_path / "live.jsonl"):
        pass
    assert history(mlflow_server, run_id) == [(1, 1.0)]


def test_training_never_waits_for_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def hang(_address: str) -> Tracker:
        answer.wait()
        raise ServiceError

    monkeypatch.setattr(live_log, "Tracker", hang)
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 0.0)
    with LiveLog("0" * 32, "pretrain", tmp_path / "live.jsonl") as logger:
        for step in range(20_000):
            logger({"train/loss": 1.0}, step)
    answer.set()


def test_pretrain_logs_into_the_run_that_it_was_given(
    relay: Relay, mlflow_server: str, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, training_data.write(tmp_path), RECIPE)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", run_id)
        killing.run(["pretrain", "--set", "pretrain.trace_steps=[2, 2]"], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "reports/pretrain/metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "val/image_to_text/recall@1"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        assert history(mlflow_server, run_id, f"pretrain/{metric_name(name)}") == points
    speed = history(mlflow_server, run_id, "pretrain/train/pairs_per_s")
    assert [step for step, _ in speed] == [row["step"] for row in rows]
    traces = MlflowClient(mlflow_server).list_artifacts(run_id, "trace/pretrain")
    assert [file.path for file in traces] == ["trace/pretrain/rank-0.json.gz"]
    assert MlflowClient(mlflow_server).get_run(run_id).info.status == "RUNNING"  # its caller ends it


def test_a_journal_that_cannot_be_written_is_one_warning(
    relay: Relay, run_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with LiveLog(run_id, "pretrain", tmp_path / "file" / "live.jsonl") as logger:
        logger({"train/loss": 1.0}, 1)
        logger({"train/loss": 1.0}, 2)
    assert capsys.readouterr().err.count("live logging stopped, training continues") == 1
