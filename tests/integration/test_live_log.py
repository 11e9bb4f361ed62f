"""Live metrics with a real MLflow behind a network that fails."""

import json
import pickle
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient

from align.errors import RefusedError, ServiceError, TrainingError
from align.services.tracking import live_log
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker, metric_name
from tests.support import killing, training_data, wait_until
from tests.support.training_data import RECIPE
from tests.support.training_project import write_project


class Relay:
    """Passes connections on to a server while it is `open`.

    `cut` refuses connections and breaks existing ones; `loses answers` passes requests to the server, and breaks the
    connection when the answer arrives; `hangs` accepts requests and does nothing.
    """

    def __init__(self, uri):
        parts = urlsplit(uri)
        assert parts.hostname and parts.port
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._state = "open"
        self._sockets = []
        self._hung = []
        self.num_lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, state):
        """Changes the state, and breaks all open connections."""
        self._state = state
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for each in self._hung:
            each.close()
        self._sockets.clear()
        self._hung.clear()

    def _accept(self):
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                if self._state == "cut":
                    client.close()
                    continue
                if self._state == "hangs":
                    self._hung.append(client)
                    continue
                server = socket.create_connection(self._server)
                self._sockets += [client, server]
                for one, other, answers in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=(one, other, answers), daemon=True).start()

    def _pass_on(self, one, other, answers):
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if answers and self._state == "loses answers":
                    self.num_lost += 1
                    break
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        one.close()  # the thread that reads the other one closes it

    def __enter__(self):
        return self

    def __exit__(self, _kind, _error, _where):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.set("cut")


LOSS = "pretrain/train/loss"


@pytest.fixture
def relay(mlflow_server, monkeypatch):
    with Relay(mlflow_server) as relay:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", relay.uri)
        yield relay


@pytest.fixture
def run_id(mlflow_server):
    return Tracker(mlflow_server).start_run("live", "a run")


def history(server, run_id, name=LOSS):
    return sorted((point.step, point.value) for point in MlflowClient(server).get_metric_history(run_id, name))


def wait_for(server, run_id, step):
    wait_until(lambda: step in dict(history(server, run_id)), says=lambda: f"step {step} did not arrive", pause_s=0.1)


class Said:
    """The text on stderr so far."""

    def __init__(self, capsys):
        self._capsys, self.text = capsys, ""

    def count(self, words):
        self.text += self._capsys.readouterr().err
        return self.text.count(words)

    def wait_for(self, words):
        wait_until(lambda: self.count(words), 200, says=lambda: f"{words!r} was not printed, but {self.text!r}")


@pytest.mark.parametrize("outage", ["cut", "loses answers"])
def test_an_outage_costs_its_rows_and_doubles_none(relay, mlflow_server, run_id, outage, capsys):
    said = Said(capsys)
    gone = f"training continues without live metrics: MLflow at {relay.uri}"  # not at another test's address
    logger = pickle.loads(pickle.dumps(LiveLog(run_id, "pretrain")))
    with logger:
        logger({"train/loss": 1.5}, 10)
        wait_for(mlflow_server, run_id, 10)
        relay.set(outage)
        logger({"train/loss": 2.5, "val/image_to_text/recall@1": 0.5}, 20)
        said.wait_for(gone)
        relay.set("open")
        logger({"train/loss": 3.5}, 30)
        wait_for(mlflow_server, run_id, 30)
        said.wait_for("MLflow is back")
        logger({"train/loss": 4.5}, 40)
    whole = [(10, 1.5), (20, 2.5), (30, 3.5), (40, 4.5)]
    arrived = relay.num_lost > 0  # without an answer
    assert arrived == (outage == "loses answers")
    assert history(mlflow_server, run_id) == [point for point in whole if arrived or point[0] != 20]
    assert history(mlflow_server, run_id, "pretrain/val/image_to_text/recall_at_1") == ([(20, 0.5)] if arrived else [])
    assert said.count(gone) == said.count("MLflow is back") == 1
    rows = [{"step": step, "train/loss": loss} for step, loss in whole]
    Tracker(mlflow_server).log_series(run_id, rows, "pretrain/")  # as `align register` does
    assert history(mlflow_server, run_id) == whole


def test_a_row_has_the_time_of_its_step(relay, mlflow_server, run_id, monkeypatch):
    held = threading.Event()

    def slow(address):
        held.wait()
        return Tracker(address)

    monkeypatch.setattr(live_log, "Tracker", slow)
    with LiveLog(run_id, "pretrain") as logger:
        began = time.time() * 1000
        logger({"train/loss": 1.5}, 10)
        ended = time.time() * 1000
        time.sleep(0.1)
        held.set()
    (point,) = MlflowClient(mlflow_server).get_metric_history(run_id, LOSS)
    assert began - 1 <= point.timestamp <= ended


def test_steps_that_restarted_ranks_repeat_are_logged_once(relay, mlflow_server, run_id):
    for steps in (range(1, 8), range(5, 10)):  # from the checkpoint at step 4
        with LiveLog(run_id, "pretrain") as logger:
            for step in steps:
                logger({"train/loss": float(step)}, step)
    assert history(mlflow_server, run_id) == [(step, float(step)) for step in range(1, 10)]


def test_a_run_that_was_deleted_ends_live_logging_with_one_warning(mlflow_server, run_id, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 600.0)  # longer than a test may take
    said = Said(capsys)
    MlflowClient(mlflow_server).delete_run(run_id)
    for gone in (run_id, "0" * 32):
        with pytest.raises(RefusedError, match=f"MLflow at {mlflow_server} refuses: "):
            Tracker().log_rows(gone, [{"step": 1, "loss": 1.0}])
        with LiveLog(gone, "pretrain") as logger:
            logger({"train/loss": 1.0}, 1)
            said.wait_for(f"live logging stopped, training continues: MLflow at {mlflow_server} refuses")
            logger({"train/loss": 1.0}, 2)
        assert said.count("training continues") == 1
        said.text = ""


def test_the_end_of_training_waits_for_mlflow_but_not_for_ever(relay, run_id, monkeypatch, capsys):
    said = Said(capsys)
    relay.set("hangs")
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 3.0)
    start = time.monotonic()
    with LiveLog(run_id, "pretrain") as logger:
        logger({"train/loss": 1.0}, 1)
    assert time.monotonic() - start >= 3
    assert said.count("MLflow did not take the last rows in time") == 1
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 600.0)  # one that failed is resumed: nothing to wait for
    with pytest.raises(TrainingError), LiveLog(run_id, "pretrain"):
        raise TrainingError


def test_training_never_waits_for_mlflow(monkeypatch):
    answer = threading.Event()

    def hang(_address):
        answer.wait()
        raise ServiceError

    monkeypatch.setattr(live_log, "Tracker", hang)
    monkeypatch.setattr(live_log, "_LAST_WAIT_S", 0.0)
    with LiveLog("0" * 32, "pretrain") as logger:
        for step in range(20_000):
            logger({"train/loss": 1.0}, step)
    answer.set()


def test_pretrain_logs_into_the_run_that_it_was_given(relay, mlflow_server, run_id, tmp_path, monkeypatch):
    write_project(tmp_path, training_data.write(tmp_path), RECIPE)
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_RUN_ID", run_id)
        killing.run(["pretrain"], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "reports/pretrain/metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "val/image_to_text/recall@1"):
        points = [(row["step"], row[name]) for row in rows if name in row]
        assert history(mlflow_server, run_id, f"pretrain/{metric_name(name)}") == points
    speed = history(mlflow_server, run_id, "pretrain/train/pairs_per_s")
    assert [step for step, _ in speed] == [row["step"] for row in rows]
    assert MlflowClient(mlflow_server).get_run(run_id).info.status == "RUNNING"  # its caller ends it
