"""Servers that go away and ranks that die while two ranks train: the weights and the curves are those of a calm run,
but for the live points of MLflow's outage.

The samples are in SeaweedFS only, each is read once (all steps are of one epoch, so nothing comes from memory), and
every step is logged into MLflow.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path

import psutil
import pytest
import torch
from mlflow import MlflowClient

from align.config.infrastructure import ClusterConfig, HealthConfig
from align.services.s3.store import checkpoint_mirror, tar_reader
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker, metric_name
from align.training.plan import Infrastructure
from align.training.train import run
from tests.support import mlflow_server as mlflow
from tests.support import training_data, wait_until, warm
from tests.support.params import load_params
from tests.support.remote_shards import move_tars, store_config
from tests.support.s3_server import S3Server, serve
from tests.support.training_data import plan, pretrain_config, with_log

NUM_STEPS, GATE, OUTAGE_S = 80, 60, 30.0
RECIPE = pretrain_config(
    num_steps=NUM_STEPS, learning_rate=0.005, num_processes=2, log_every_steps=1, validate_every_steps=NUM_STEPS,
    checkpoint_every_steps=10,
)  # fmt: skip
LIVE_ONLY = {"train/loader_wait_share", "train/pairs_per_s", "train/device_hours", "train/cost", "train/alarms"}


class Paced(LiveLog):
    """Writes each step down, takes some time over it, and does not let training end before all is well again."""

    def __init__(self, run_id, journal, uri, gate):
        super().__init__(run_id, "pretrain")
        self.journal, self.uri, self.gate = journal, uri, gate
        self.file = None

    def __enter__(self):
        os.environ["MLFLOW_TRACKING_URI"] = self.uri  # tests.conftest has taken it away, in this process too
        self.file = self.journal.open("a", buffering=1)
        return super().__enter__()

    def __call__(self, metrics, step):
        super().__call__(metrics, step)
        assert self.file is not None
        self.file.write(json.dumps({"step": step, "time_s": time.time()}) + "\n")
        time.sleep(0.5)
        while step == GATE and not self.gate.exists():
            time.sleep(0.05)


@dataclass
class Outages:
    """What is done to a training run, from a thread beside it.

    Attributes:
        arrived: whether MLflow has a step.
        held: the last step before training waited for S3.
        away: the last step that MLflow surely has from before its outage, and the last one of its outage.
        failure: what went wrong in here.
    """

    journal: Path
    gate: Path
    s3: S3Server
    mlflow: mlflow.MlflowServer
    arrived: Callable[[int], bool]
    held: int = 0
    away: tuple[int, int] = (0, 0)
    failure: BaseException | None = None

    def __call__(self):
        try:
            self._happen()
        except BaseException as error:  # noqa: BLE001  the test shows it
            self.failure = error
        finally:
            self.gate.touch()

    def _happen(self):
        self.wait(lambda: self.step() >= 15)
        self.s3.kill()
        self.stands(3)  # both ranks wait for the store
        other = self.kill(leader=False)
        other.wait(timeout=20)  # told to stop, it does not wait for the store until it is killed, after 30 s
        self.held = self.stands(OUTAGE_S)
        assert 15 <= self.held < GATE, "training did not wait for the store"
        self.s3.start()
        self.wait(lambda: self.step() >= self.held + 5)

        before = self.step()
        self.wait(lambda: self.arrived(before))
        self.mlflow.kill()
        start = time.monotonic()
        self.wait(lambda: self.step() >= before + 15)  # training continues
        self.kill(leader=True)
        died = self.step()
        time.sleep(max(0.0, start + OUTAGE_S - time.monotonic()))
        self.mlflow.start()
        self.wait(lambda: self.arrived(died) and self.step() > died)
        self.away = before, self.step()

    def stands(self, seconds):
        """Waits until no step ends for so long, and returns the last one: what had been read is trained on."""
        last = -1
        while (step := self.step()) != last:
            last = step
            time.sleep(seconds)
        return last

    def step(self):
        """The last one that was logged."""
        lines = self.journal.read_text().splitlines()[-2:] if self.journal.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except ValueError:  # it is being written
                continue
        return 0

    def wait(self, condition):
        wait_until(condition, says=lambda: f"nothing more happened after step {self.step()}", pause_s=0.02)

    def kill(self, *, leader):
        """SIGKILL to the rank that writes the journal, or to the other one; returns the one that is left."""
        ranks = [each for each in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(each.cmdline())]
        leads = [any(file.path == str(self.journal) for file in each.open_files()) for each in ranks]
        assert sorted(leads) == [False, True], ranks
        os.kill(ranks[leads.index(leader)].pid, signal.SIGKILL)
        return ranks[leads.index(not leader)]


@pytest.mark.kill
def test_half_a_minute_without_servers_and_killed_ranks(tmp_path, monkeypatch, capfd):
    shards, tokenizer = training_data.write(tmp_path, num_train=8 * (NUM_STEPS + 10))
    calm = run(plan((shards, tokenizer), tmp_path / "calm", RECIPE))
    assert calm is not None
    # ranks are known by their command: started, not forked
    monkeypatch.setattr(spawn, "get_executable", warm.started_executable)
    with serve(tmp_path / "s3") as s3, mlflow.serve(tmp_path / "mlflow") as server:
        s3.use(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", server.uri)
            outages, trained, run_id = train_through(tmp_path, (shards, tokenizer), s3, server)
        assert trained.rows == calm.rows
        for name, weight in calm.model.state_dict().items():
            assert torch.equal(trained.model.state_dict()[name], weight), name
        assert any(key.endswith(f"step-{NUM_STEPS:08d}.pt") for key in s3.keys("shards"))
        client = MlflowClient(server.uri)
        found = {key: client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics}
    names = {name for row in calm.rows for name in row} - {"step"}
    signs = {name for name in found if name.startswith("pretrain/train/alarm/")}  # of so short a run, some are bad
    assert set(found) - signs == {f"pretrain/{metric_name(name)}" for name in names | LIVE_ONLY}
    arrived = sorted(point.step for point in found["pretrain/train/loss"])
    missing = set(range(1, NUM_STEPS + 1)) - set(arrived)
    assert outages.away[0] < min(missing) <= max(missing) <= outages.away[1]
    for name in names:
        points = sorted((point.step, point.value) for point in found[f"pretrain/{metric_name(name)}"])
        assert points == [
            point for point in ((row["step"], row[name]) for row in calm.rows if name in row) if point[0] in arrived
        ], name
    for name in LIVE_ONLY:
        assert sorted(point.step for point in found[f"pretrain/{name}"]) == arrived, name
    rows = [json.loads(line) for line in outages.journal.read_text().splitlines()]
    before, after = (next(row for row in rows if row["step"] == step) for step in (outages.held, outages.held + 1))
    assert after["time_s"] - before["time_s"] > OUTAGE_S - 1
    said = capfd.readouterr().err
    assert said.count("retrying for") >= 2 and said.count("resuming from step") == 2
    # by the leading rank before its death, and by the next one, if MLflow is away for as long as a rank takes to start
    away = said.count("training continues without live metrics")
    assert away in (1, 2) and said.count("MLflow is back") == away - 1
    assert "live logging stopped" not in said and "did not take" not in said


def train_through(tmp_path, data, s3, server):
    """Trains through all outages; also returns the run of MLflow."""
    changes = {"checkpoints": "s3://shards/checkpoints", "num_retries": 2, "timeout_s": 5.0}
    config = store_config(s3, tmp_path).model_copy(update=changes)
    move_tars(data[0], config)
    params, tracker = load_params(), Tracker(server.uri)
    run_id = tracker.start_run("outages", tmp_path.name)
    stormy = plan(
        data, tmp_path / "checkpoints", RECIPE,
        health=params.section(HealthConfig).model_copy(update={"price_per_hour": 2.0}),
        infrastructure=Infrastructure(tar_reader(config), checkpoint_mirror(config), params.section(ClusterConfig)),
    )  # fmt: skip
    journal, gate = stormy.folder().directory / "live.jsonl", tmp_path / "gate"

    def arrived(step):
        return Tracker(server.uri).last_steps(run_id).get("pretrain/train/loss", 0) >= step

    outages = Outages(journal, gate, s3, server, arrived)
    thread = threading.Thread(target=outages)
    thread.start()
    try:
        trained = run(with_log(stormy, Paced(run_id, journal, server.uri, gate)))
    finally:
        thread.join()
    assert outages.failure is None, outages.failure
    assert trained is not None
    return outages, trained, run_id
