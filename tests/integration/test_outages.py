"""Servers that go away and ranks that die while two ranks train: the weights and the curves are those of a calm run.

The samples are in SeaweedFS only, each is read once (all steps are of one epoch, so nothing comes from memory), and
every step is logged into MLflow.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Self

import psutil
import pytest
import torch
from mlflow import MlflowClient

from align.config.infrastructure import ClusterConfig, HealthConfig
from align.services.s3.store import checkpoint_mirror, tar_reader
from align.services.tracking.live_log import LiveLog
from align.services.tracking.tracker import Tracker, metric_name
from align.training.run import Trained, run
from align.training.run_plan import Infrastructure, TrainingPlan
from tests.support import mlflow_server as mlflow
from tests.support import training_data, warm
from tests.support.params import load_params
from tests.support.relay import Relay
from tests.support.remote_shards import move_tars, store_config
from tests.support.s3_server import KEY, SECRET, S3Server, serve
from tests.support.training_data import plan, pretrain_config, with_log

NUM_STEPS, GATE = 80, 60
RECIPE = pretrain_config(
    num_steps=NUM_STEPS, learning_rate=0.005, num_processes=2, log_every_steps=1, validate_every_steps=NUM_STEPS,
    checkpoint_every_steps=10, store_patience_s=120.0,
)  # fmt: skip
LIVE_ONLY = {"train/loader_wait_share", "train/pairs_per_s", "train/device_hours", "train/cost", "train/alarms"}


class Paced(LiveLog):
    """Takes some time over each step, and does not let training end before all is well again."""

    def __init__(self, run_id: str, journal: Path, uri: str, gate: Path, pace_s: float) -> None:
        super().__init__(run_id, "pretrain", journal)
        self.uri, self.gate, self.pace_s = uri, gate, pace_s

    def __enter__(self) -> Self:
        os.environ["MLFLOW_TRACKING_URI"] = self.uri  # tests.conftest has taken it away, in this process too
        return super().__enter__()

    def __call__(self, metrics: dict[str, float], step: int) -> None:
        super().__call__(metrics, step)
        time.sleep(self.pace_s)
        while step == GATE and not self.gate.exists():
            time.sleep(0.05)


@dataclass
class Outages:
    """What is done to a training run, from a thread beside it.

    Attributes:
        away, back: take MLflow away, and bring it back.
        arrived: whether MLflow has a step.
        both_die: in S3's outage the other rank, too.
        held: the last step before training waited for S3.
        failure: what went wrong in here.
    """

    journal: Path
    gate: Path
    s3: S3Server
    away: Callable[[], None]
    back: Callable[[], None]
    arrived: Callable[[int], bool]
    outage_s: float
    both_die: bool
    held: int = 0
    failure: BaseException | None = None

    def __call__(self) -> None:
        try:
            self._happen()
        except BaseException as error:  # noqa: BLE001  the test shows it
            self.failure = error
        finally:
            self.gate.touch()

    def _happen(self) -> None:
        self.wait(lambda: self.step() >= 15)
        self.s3.kill()
        if self.both_die:
            time.sleep(3)
            other = self.kill(leader=False)
            other.wait(timeout=20)  # told to stop, it does not wait for the store until it is killed, after 30 s
        self.held = -1
        while (step := self.step()) != self.held:  # what had been read already is trained on
            self.held = step
            time.sleep(self.outage_s)
        assert 15 <= self.held < GATE, "training did not wait for the store"
        self.s3.start()
        self.wait(lambda: self.step() >= self.held + 5)

        self.away()
        start, before = time.monotonic(), self.step()
        self.wait(lambda: self.step() >= before + 15)  # training continues
        self.kill(leader=True)
        died = self.step()
        time.sleep(max(0.0, start + self.outage_s - time.monotonic()))
        self.back()
        self.wait(lambda: self.arrived(died) and self.step() > died)

    def step(self) -> int:
        """The last one that was logged."""
        lines = self.journal.read_text().splitlines()[-2:] if self.journal.exists() else []
        for line in reversed(lines):
            try:
                return int(json.loads(line)["step"])
            except ValueError:  # it is being written
                continue
        return 0

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, f"nothing more happened after step {self.step()}"
            time.sleep(0.02)

    def kill(self, *, leader: bool) -> psutil.Process:
        """SIGKILL to the rank that writes the journal, or to the other one; returns the one that is left."""
        ranks = [each for each in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(each.cmdline())]
        leads = [any(file.path == str(self.journal) for file in each.open_files()) for each in ranks]
        assert sorted(leads) == [False, True], ranks
        os.kill(ranks[leads.index(leader)].pid, signal.SIGKILL)
        return ranks[leads.index(not leader)]


@contextmanager
def environment(s3: S3Server, mlflow_uri: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1", "MLFLOW_TRACKING_URI": mlflow_uri,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def _ranks_are_known_by_their_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started, not forked."""
    monkeypatch.setattr(spawn, "get_executable", warm.started_executable)


def calm_run(tmp_path: Path) -> tuple[Path, TrainingPlan, Trained]:
    """Shards and tokenizer, and what comes of them on this machine alone."""
    shards, tokenizer = training_data.write(tmp_path, num_train=8 * (NUM_STEPS + 10))
    calm = plan((shards, tokenizer), tmp_path / "calm", RECIPE)
    trained = run(calm)
    assert trained is not None
    return shards, calm, trained


def train_through(
    tmp_path: Path, s3: S3Server, mlflow_uri: str, real_uri: str, *, outage_s: float, pace_s: float, both_die: bool,
    away: Callable[[], None], back: Callable[[], None],
) -> dict[str, float]:  # fmt: skip
    """Trains through all outages, holds the result against a calm run's, and returns the row after S3's outage."""
    shards, calm_plan, calm = calm_run(tmp_path)
    config = store_config(s3, tmp_path).model_copy(
        update={"checkpoints": "s3://shards/checkpoints", "num_retries": 2, "timeout_s": 5.0}
    )
    move_tars(shards, config)
    params = load_params()
    run_id = Tracker(real_uri).start_run("outages", tmp_path.name)
    stormy = plan(
        (shards, calm_plan.inputs.tokenizer), tmp_path / "checkpoints", RECIPE,
        health=params.section(HealthConfig).model_copy(update={"price_per_hour": 2.0}),
        infrastructure=Infrastructure(tar_reader(config), checkpoint_mirror(config), params.section(ClusterConfig)),
    )  # fmt: skip
    journal, gate = stormy.folder().directory / "live.jsonl", tmp_path / "gate"
    client = MlflowClient(real_uri)

    def arrived(step: int) -> bool:
        return Tracker(real_uri).last_steps(run_id).get("pretrain/train/loss", 0) >= step

    outages = Outages(journal, gate, s3, away, back, arrived, outage_s, both_die)
    thread = threading.Thread(target=outages)
    thread.start()
    try:
        trained = run(with_log(stormy, Paced(run_id, journal, mlflow_uri, gate, pace_s)))
    finally:
        thread.join()
    assert outages.failure is None, outages.failure
    assert trained is not None
    assert trained.rows == calm.rows
    for name, weight in calm.model.state_dict().items():
        assert torch.equal(trained.model.state_dict()[name], weight), name
    assert any(key.endswith(f"step-{NUM_STEPS:08d}.pt") for key in s3.keys("shards"))

    names = {name for row in calm.rows for name in row} - {"step"}
    found = {key: client.get_metric_history(run_id, key) for key in client.get_run(run_id).data.metrics}
    assert set(found) == {f"pretrain/{metric_name(name)}" for name in names | LIVE_ONLY}
    for name in names:
        points = sorted((point.step, point.value) for point in found[f"pretrain/{metric_name(name)}"])
        assert points == [(row["step"], row[name]) for row in calm.rows if name in row], name
    for name in LIVE_ONLY:
        assert sorted(point.step for point in found[f"pretrain/{name}"]) == list(range(1, NUM_STEPS + 1)), name
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    before, after = (row for row in rows if row["step"] in (outages.held, outages.held + 1))
    assert after["time"] - before["time"] > 1000 * (outage_s - 1)
    return after


@pytest.mark.full
def test_seconds_without_servers_and_a_killed_rank(
    tmp_path: Path, mlflow_server: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve(tmp_path / "s3") as s3, Relay(mlflow_server) as relay, environment(s3, relay.uri):
        after = train_through(
            tmp_path, s3, relay.uri, mlflow_server, outage_s=3.0, pace_s=0.05, both_die=False,
            away=lambda: relay.set("cut"), back=lambda: relay.set("open"),
        )  # fmt: skip
    assert after["train/loader_wait_share"] > 0.2  # it was the loader that waited
    said = capfd.readouterr().err
    assert "retrying for" in said and said.count("resuming from step") == 1
    assert "live logging stopped" not in said and "did not take" not in said


@pytest.mark.full
def test_half_a_minute_without_servers_and_killed_ranks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        serve(tmp_path / "s3") as s3,
        mlflow.serve(tmp_path / "mlflow") as server,
        environment(s3, server.uri),
    ):
        train_through(
            tmp_path, s3, server.uri, server.uri, outage_s=30.0, pace_s=0.5, both_die=True, away=server.kill,
            back=server.start,
        )  # fmt: skip
    said = capfd.readouterr().err
    assert said.count("retrying for") >= 2 and said.count("resuming from step") == 2
    assert 1 <= said.count("training continues, its rows wait in") <= 2  # the leading rank before and after its death
    assert said.count("MLflow is back, ") == 1
    assert "live logging stopped" not in said and "did not take" not in said
