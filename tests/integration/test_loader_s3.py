"""Training on tars that only a real object store has, by range and through outages; and loader processes: the batches
of threads, ends of every kind, and none that is left.
"""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from align.config.infrastructure import ClusterConfig, StoreConfig
from align.errors import DataError, ServiceError
from align.formats.shards import read_manifest
from align.model.tokenizer import TextTokenizer
from align.services.s3.client import upload
from align.services.s3.store import Objects, TarReader, tar_reader
from align.training.batches import loader as loader_module
from align.training.batches.batch import Augmentation, Batch, Sampling, Workers
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.given_tars import given_data
from align.training.run import run
from align.training.run_plan import Infrastructure
from tests.support import ROOT, given_tars, killing, training_data, wait_until, warm
from tests.support.params import load_params
from tests.support.remote_shards import move_tars, store_config
from tests.support.s3_server import serve
from tests.support.training_data import RECIPE, plan, pretrain_config
from tests.support.training_project import write_project


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serve(tmp_path / "server") as running:
        running.use(monkeypatch)
        yield running


def loader(index, tars=None, patience_s=0.0, rank=0, of=1):
    samples = SplitSamples(index, 36, tars, patience_s=patience_s, cache_bytes=0)
    return TrainLoader(
        samples, sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=32, num_draws=3, flip=True), rank=rank, world_size=of,
    )  # fmt: skip


@dataclass
class Far:
    """Shards that only the server has, and the batches that they made here."""

    shards: Path
    reader: TarReader
    local: list[Batch]

    def index(self):
        return SplitIndex.of(self.shards, read_manifest(self.shards), "train", self.reader)

    def samples(self):
        return SplitSamples(self.index(), 36, self.reader, patience_s=600, cache_bytes=0)


@pytest.fixture
def far(server, tmp_path):
    shards, _ = training_data.write(tmp_path, num_train=40)
    local = list(loader(SplitIndex.of(shards, read_manifest(shards), "train")).batches(0, 20))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = tar_reader(config)
    return Far(shards, reader, local)


def same(ours, theirs):
    return torch.equal(ours.images, theirs.images) and ours.texts == theirs.texts


@dataclass
class Watched:
    """Counts reads, and how many run at a time."""

    tars: TarReader
    sizes: list[int] = field(default_factory=list)
    now: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_connections(self):
        return self.tars.num_connections

    def uri(self, sha256, num_bytes):
        return self.tars.uri(sha256, num_bytes)

    def read(self, uri, offset, size):
        with self.lock:
            self.sizes.append(size)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.tars.read(uri, offset, size)
        finally:
            with self.lock:
                self.now -= 1


def test_tars_of_others_on_a_server_are_the_same_data_and_batches(server, tmp_path):
    folder, bucket, config = (
        given_tars.write(tmp_path / "tars"),
        server.make_bucket("given"),
        store_config(server, tmp_path),
    )
    for tar in folder.iterdir():
        upload(config, tar, f"s3://{bucket}/cc/{tar.name}")
    values = load_params(overrides=[f"store.cache={tmp_path}/cache", "engine.num_workers=1"])
    shown = []
    for spec in (str(folder), f"s3://{bucket}/cc/{{00000..00001}}.tar", f"s3://{bucket}/cc/*.tar"):
        ((index, manifest, _),) = given_data(values, [spec], "pretrain")
        reader = tar_reader(values.section(StoreConfig), given=True)
        train = loader(SplitIndex.of(index, manifest, "train", reader), reader)
        shown.append((manifest.digest, list(train.batches(0, 6))))
    (digest, batches), *others = shown
    assert others[0][0] == others[1][0] == digest
    assert all(map(same, batches, others[0][1]))


def test_ranges_show_what_files_show(far):
    shards, local, config, watched = far.shards, far.local, far.reader.config, Watched(far.reader)
    with pytest.raises(DataError, match=r"missing.*store\.objects"):
        SplitIndex.of(shards, read_manifest(shards), "train")
    index = SplitIndex.of(shards, read_manifest(shards), "train", watched)
    assert all(uri.startswith("s3://shards/objects/") for uri in index.shards)
    assert all(map(same, loader(index, watched).batches(0, 20), local))
    # Samples this small are neighbours: one read per shard and batch, and at most one read per connection at a time.
    assert len(watched.sizes) <= 20 * 2
    assert 1 < watched.most <= config.num_connections
    parts = [loader(index, watched, rank=rank, of=2).batches(3, 10) for rank in range(2)]
    for step, (first, second) in enumerate(zip(*parts, strict=True), 3):
        assert torch.equal(torch.cat([first.images, second.images]), local[step].images)
    # A checked copy on this machine is read instead of the object.
    row = read_manifest(shards).splits["train"].shards[0]
    copy = Objects(config).get(row.sha256, row.num_bytes)
    assert far.index().shards[0] == str(copy)
    # A missing object is reported at once, without retries.
    Objects(config).delete(read_manifest(shards).splits["train"].shards[1].sha256)
    with pytest.raises(DataError, match=r"s3://shards/objects/.*: no such object"):
        list(loader(index, watched, patience_s=600).batches(0, 10))  # longer than a test may take


def test_neighbours_are_read_together_and_others_are_not(tmp_path):
    shards, _ = training_data.write(tmp_path)

    class Far:
        num_connections = 1

        def uri(self, sha256, num_bytes):
            return f"s3://far/{sha256}"

        def read(self, uri, offset, size):
            raise AssertionError

    for tar in shards.rglob("*.tar"):
        tar.unlink()
    samples = SplitSamples(SplitIndex.of(shards, read_manifest(shards), "train", Far()), 36, Far())
    (first, second) = samples.spans(samples.locations(np.array([13, 2, 3, 12])))
    assert (first.shard, first.samples, second.shard, second.samples) == (0, [2, 3], 1, [12, 13])
    offsets = samples.index.read_offsets(0)
    assert (first.begin, first.end) == (offsets[2, 0], offsets[3, 2] + offsets[3, 3])


def test_training_waits_for_an_unavailable_store_with_the_same_result(server, far, monkeypatch):
    """The store is back some time after the loader has said that it waits."""
    train = loader(far.index(), far.reader, patience_s=200)
    said = []
    monkeypatch.setattr(train._sources[0][0].tars, "tell", said.append)
    is_back = threading.Event()
    monkeypatch.setattr(loader_module, "time", SimpleNamespace(monotonic=lambda: 1000.0 * is_back.is_set()))

    def bring_back():
        while not said:
            time.sleep(0.05)
        time.sleep(2)
        is_back.set()
        server.start()

    batches = train.batches(0, 20)
    shown = [next(batches) for _ in range(7)]
    server.kill()
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(bring_back)
        shown += batches
        done.result()
    assert len(shown) == 20 and all(map(same, shown, far.local))
    assert train.wait_s == 1000
    assert f"no answer from {server.url}" in said[0] and "retrying for" in said[0]


def test_a_store_that_stays_unavailable_ends_training_in_time_with_its_name(server, far):
    batches = loader(far.index(), far.reader, patience_s=8).batches(0, 20)
    next(batches)
    server.kill()
    with pytest.raises(ServiceError, match=rf"no answer from {server.url} .*tried for ([3-9]|\d\d+) s"):
        list(batches)


def test_a_loader_that_is_closed_does_not_wait_for_the_store(server, far):
    batches = loader(far.index(), far.reader, patience_s=600).batches(0, 20)
    next(batches)
    server.kill()
    time.sleep(1)
    batches.close()  # waiting for the store takes longer than a test may


def test_a_process_told_to_stop_does_not_wait_for_the_store(server, far):
    samples, told = far.samples(), threading.Event()
    server.kill()
    samples.tars.stopped = told.is_set
    threading.Timer(2, told.set).start()
    with pytest.raises(ServiceError, match=f"no answer from {server.url}"):
        samples.image(0)
    assert told.is_set()


def test_ranks_read_from_the_store(server, tmp_path):
    shards, tokenizer = training_data.write(tmp_path)
    recipe = pretrain_config(num_steps=2, warmup_steps=1, num_processes=2)
    local = run(plan((shards, tokenizer), tmp_path / "local", recipe))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = Infrastructure(tars=tar_reader(config))
    training_data.assert_same(run(plan((shards, tokenizer), tmp_path / "far", recipe, infrastructure=reader)), local)


@pytest.mark.kill
def test_loader_processes_wait_for_the_store_as_threads_do(server, far, capfd):
    samples, told = far.samples(), threading.Event()
    samples.tars.stopped = told.is_set
    batches = TrainLoader(
        samples, sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=32, num_draws=3, flip=True), workers=Workers(num_processes=2),
    ).batches(0, 1000)  # fmt: skip
    assert all(map(same, (next(batches) for _ in range(8)), far.local))
    server.kill()
    threading.Timer(3, told.set).start()
    with pytest.raises(ServiceError, match=rf"^s3://\S+: no answer from {server.url}"):
        list(batches)
    assert told.is_set()
    said = [line for line in capfd.readouterr().err.splitlines() if "retrying for" in line]
    assert len(said) == 1  # of two processes


def half_of(data, workers, extra=None):
    """The second of two ranks, from two sources."""
    index, more = (SplitIndex.of(source[0], read_manifest(source[0]), "train") for source in (data, extra or data))
    return TrainLoader(
        SplitSamples(index, 36, on_corrupt="quarantine"), sampling=Sampling(seed=7, batch_size=16, shuffle_block=7),
        augmentation=Augmentation(32, 3, flip=True, phrase_dropout=0.5, tokenizer=TextTokenizer.load(data[1], 16)),
        extra=[(SplitSamples(more, 40), 0.5)], rank=1, world_size=2, workers=workers,
    )  # fmt: skip


def of_this_process():
    """The loader processes."""
    return [psutil.Process(child.pid) for child in multiprocessing.active_children()]


def num_leaders():
    """How many forks lead a session."""
    found = 0
    for process in warm.processes():
        with suppress(OSError):
            found += os.getsid(process.pid) == process.pid
    return found


def same_tokens(ours, theirs):
    assert ours.tokens is not None and theirs.tokens is not None
    pairs = zip(ours.tensors(), theirs.tensors(), strict=True)
    return (
        all(torch.equal(one, other) for one, other in pairs)
        and ours.texts == theirs.texts
        and ours.tokens.lengths.tolist() == theirs.tokens.lengths.tolist()
        and ours.num_quarantined == theirs.num_quarantined
    )


def test_processes_make_what_threads_make_and_end_when_nobody_takes_it(data, tmp_path, capsys):
    damaged = training_data.write(tmp_path)
    tar = damaged[0] / "train/00000.tar"
    with tar.open("r+b") as file:
        index = SplitIndex.of(damaged[0], read_manifest(damaged[0]), "train")
        for offset, size, *_ in index.read_offsets(0)[:4].tolist():  # not the texts
            file.seek(offset)
            file.write(b"\0" * size)
    threads = half_of(damaged, Workers(), extra=data)
    expected = list(threads.batches(3, 10))
    lines = capsys.readouterr().err.splitlines()
    processes = half_of(damaged, Workers(num_processes=3), extra=data)
    made = processes.batches(3, 1000)
    resource_tracker.ensure_running()
    while not (leaders := num_leaders()):  # it leads one, too
        time.sleep(0.01)
    shown = [next(made)]
    assert len(of_this_process()) == 3
    shown += islice(made, 6)
    assert num_leaders() == leaders + 3  # no Ctrl-C reaches them
    assert all(map(same_tokens, shown, expected)) and len(shown) == len(expected) == 7
    made.close()
    assert of_this_process() == []
    assert processes.num_quarantined == threads.num_quarantined > 0 and processes.wait_s > 0
    said = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said) == 1  # once for the tar, from however many
    assert all("quarantined" in line and "00000.tar: sample" in line for line in (*lines, *said))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_loader_process_that_dies_is_named_and_takes_the_others_with_it(data, number):
    with closing(half_of(data, Workers(num_processes=2)).batches(0, 1000)) as batches:
        next(batches)
        first, second = sorted(of_this_process(), key=lambda process: process.pid)
        second.send_signal(number)
        with pytest.raises(DataError, match=rf"^a loader process has died, .*\b{second.pid}\b.*; run the stage"):
            list(batches)
        assert not first.is_running() and not second.is_running()


def test_a_loader_process_imports_no_model():
    code = "import align.training.batches.loader, sys; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    imported = {name.partition(".")[0] for name in names.split()}
    assert "torch" in imported
    assert not imported & {"transformers", "torchvision", "mlflow", "boto3", "prefect", "duckdb"}


class KillTwice:
    """A log function: kills a loader process of the leading rank at one step, and that rank at another; each once.

    It is told what ends the rank, whose stderr is that of the process which it was forked from.
    """

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if error is not None:
            (self.folder / "why").write_text(f"{type(error).__name__}: {error}")

    def __call__(self, metrics, step):
        loaders = [child.pid for child in multiprocessing.active_children()]
        with (self.folder / "seen").open("a") as file:
            print(*loaders, file=file)
        for due, pids in ((2, loaders), (6, [os.getpid()])):  # the last step is told when no loader process is left
            if step == due and not (self.folder / str(due)).exists():
                (self.folder / str(due)).touch()
                os.kill(pids[0], signal.SIGKILL)


@pytest.mark.kill
def test_ranks_restart_after_a_loader_process_or_a_rank_was_killed(data, tmp_path):
    recipe = pretrain_config(num_processes=2, checkpoint_every_steps=2)
    cluster = load_params().section(ClusterConfig)
    whole = run(plan(data, tmp_path / "whole", recipe))
    killed = run(plan(
        data, tmp_path / "killed", recipe.model_copy(update={"num_loader_processes": 1}), log=KillTwice(tmp_path),
        infrastructure=Infrastructure(cluster=cluster),
    ))  # fmt: skip
    assert (tmp_path / "2").exists() and (tmp_path / "6").exists()
    assert (tmp_path / "why").read_text().startswith("DataError: a loader process has died, perhaps for memory: ")
    training_data.assert_same(whole, killed)
    require_gone({int(pid) for pid in (tmp_path / "seen").read_text().split()})


def require_gone(pids):
    """Waits a moment for processes that end because another one did."""
    assert pids
    wait_until(lambda: not any(map(killing.lives, pids)))


def loaders_below(launcher):
    for process in psutil.Process(launcher).children(recursive=True):
        if os.getsid(process.pid) == process.pid:
            yield process.pid


@pytest.mark.kill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_launcher(data, tmp_path, number):
    recipe = RECIPE | {"num_steps": 100_000, "checkpoint_every_steps": 5, "num_processes": 2, "num_loader_processes": 2}
    command = write_project(tmp_path, data, recipe)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as first:
        wait_until(lambda: [*tmp_path.glob("checkpoints/*/step-*.pt")], 240, alive=lambda: first.poll() is None)
        below = {process.pid for process in psutil.Process(first.pid).children(recursive=True)}
        assert len(list(loaders_below(first.pid))) == 4
        if number is signal.SIGTERM:
            os.killpg(first.pid, number)  # as a flow that is cancelled, or a terminal, sends it
        else:
            first.send_signal(number)
        _, errors = first.communicate(timeout=120)
    require_gone(below)
    if number is signal.SIGTERM:
        assert "SIGTERM" in errors.splitlines()[-1] and "Traceback" not in errors
        assert "a loader process has died" not in errors  # none died first
    again = write_project(tmp_path, data, recipe | {"num_steps": 100_000, "num_loader_processes": 0})
    with subprocess.Popen(again, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=environment) as second:
        for line in second.stderr:
            if re.search("resuming from step", line):
                break
        else:
            pytest.fail("it did not resume")
        second.terminate()
        second.communicate(timeout=120)
