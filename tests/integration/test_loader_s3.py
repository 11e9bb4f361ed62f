"""Training on tars that only a real object store has: by range, through outages, and in separate processes."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.errors import DataError, ServiceError
from align.formats.shards import read_manifest
from align.interfaces.store import Tars
from align.services.s3.store import Objects, TarReader, tar_reader
from align.training.batches import loader as loader_module
from align.training.batches.batch import Augmentation, Batch, Sampling, Workers
from align.training.batches.index import SplitIndex, read_outline
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.run import run
from align.training.run_plan import Infrastructure
from tests.support import training_data
from tests.support.remote_shards import move_tars, store_config
from tests.support.s3_server import KEY, SECRET, S3Server, serve
from tests.support.training_data import plan, pretrain_config


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with serve(tmp_path / "server") as running:
        for name, value in {
            "AWS_ENDPOINT_URL": running.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield running


def loader(
    index: SplitIndex, tars: Tars | None = None, patience_s: float = 0.0, rank: int = 0, of: int = 1
) -> TrainLoader:
    samples = SplitSamples(index, 36, tars, patience_s=patience_s, cache_bytes=0)
    return TrainLoader(
        samples, sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=32, num_draws=3, flip=True), rank=rank, world_size=of,
        workers=Workers(num_threads=2),
    )  # fmt: skip


def same(ours: Batch, theirs: Batch) -> bool:
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
    def num_connections(self) -> int:
        return self.tars.num_connections

    def uri(self, sha256: str, num_bytes: int) -> str:
        return self.tars.uri(sha256, num_bytes)

    def read(self, uri: str, offset: int, size: int) -> bytes:
        with self.lock:
            self.sizes.append(size)
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.tars.read(uri, offset, size)
        finally:
            with self.lock:
                self.now -= 1


def test_ranges_show_what_files_show(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    local = list(loader(read_outline(shards).split("train")).batches(0, 10))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    with pytest.raises(DataError, match=r"missing.*store\.objects"):
        read_outline(shards).split("train")
    reader = tar_reader(config)
    assert reader is not None
    watched = Watched(reader)
    index = read_outline(shards).split("train", watched)
    assert all(uri.startswith("s3://shards/objects/") for uri in index.shards)
    assert all(map(same, loader(index, watched).batches(0, 10), local))
    # Samples this small are neighbours: one read per shard and batch, and at most one read per connection at a time.
    assert len(watched.sizes) <= 10 * 2
    assert 1 < watched.most <= config.num_connections
    parts = [loader(index, watched, rank=rank, of=2).batches(3, 10) for rank in range(2)]
    for step, (first, second) in enumerate(zip(*parts, strict=True), 3):
        assert torch.equal(torch.cat([first.images, second.images]), local[step].images)
    # A checked copy on this machine is read instead of the object.
    row = read_manifest(shards).splits["train"].shards[0]
    copy = Objects(config).get(row.sha256, row.num_bytes)
    assert read_outline(shards).split("train", reader).shards[0] == str(copy)
    # A missing object is reported at once, without retries.
    Objects(config).delete(read_manifest(shards).splits["train"].shards[1].sha256)
    with pytest.raises(DataError, match=r"s3://shards/objects/.*: no such object"):
        list(loader(index, watched, patience_s=600).batches(0, 10))  # longer than a test may take


def test_neighbours_are_read_together_and_others_are_not(tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path)

    class Far:
        num_connections = 1

        def uri(self, sha256: str, num_bytes: int) -> str:
            return f"s3://far/{sha256}"

        def read(self, uri: str, offset: int, size: int) -> bytes:
            raise AssertionError

    for tar in shards.rglob("*.tar"):
        tar.unlink()
    samples = SplitSamples(read_outline(shards).split("train", Far()), 36, Far())
    (first, second) = samples.spans(samples.locations(np.array([13, 2, 3, 12])))
    assert (first.shard, first.samples, second.shard, second.samples) == (0, [2, 3], 1, [12, 13])
    offsets = samples.index.read_offsets(0)
    assert (first.begin, first.end) == (offsets[2, 0], offsets[3, 2] + offsets[3, 3])


def test_training_waits_for_an_unavailable_store_with_the_same_result(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is back some time after the loader has said that it waits."""
    shards, _ = training_data.write(tmp_path, num_train=40)
    local = list(loader(read_outline(shards).split("train")).batches(0, 20))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = tar_reader(config)
    train = loader(read_outline(shards).split("train", reader), reader, patience_s=200)
    said: list[str] = []
    monkeypatch.setattr(train._sources[0][0].tars, "tell", said.append)
    is_back = threading.Event()
    monkeypatch.setattr(loader_module, "time", SimpleNamespace(monotonic=lambda: 1000.0 * is_back.is_set()))

    def bring_back() -> None:
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
    assert len(shown) == 20 and all(map(same, shown, local))
    assert train.wait_s == 1000
    assert f"no answer from {server.url}" in said[0] and "retrying for" in said[0]


def test_a_store_that_stays_unavailable_ends_training_in_time_with_its_name(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = tar_reader(config)
    batches = loader(read_outline(shards).split("train", reader), reader, patience_s=8).batches(0, 20)
    next(batches)
    server.kill()
    with pytest.raises(ServiceError, match=rf"no answer from {server.url} .*tried for ([3-9]|\d\d+) s"):
        list(batches)


def test_a_loader_that_is_closed_does_not_wait_for_the_store(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = tar_reader(config)
    batches = loader(read_outline(shards).split("train", reader), reader, patience_s=600).batches(0, 20)
    next(batches)
    server.kill()
    time.sleep(1)
    batches.close()  # waiting for the store takes longer than a test may


def test_a_process_told_to_stop_does_not_wait_for_the_store(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader, told = tar_reader(config), threading.Event()
    samples = SplitSamples(read_outline(shards).split("train", reader), 36, reader, patience_s=600, cache_bytes=0)
    server.kill()
    samples.tars.stopped = told.is_set
    threading.Timer(2, told.set).start()
    with pytest.raises(ServiceError, match=f"no answer from {server.url}"):
        samples.image(0)
    assert told.is_set()


@pytest.mark.costs(6, "two runs of two ranks, of which one's ranks each have a client of S3")
def test_ranks_read_from_the_store(server: S3Server, tmp_path: Path) -> None:
    shards, tokenizer = training_data.write(tmp_path)
    recipe = pretrain_config(num_steps=2, warmup_steps=1, num_processes=2)
    local = run(plan((shards, tokenizer), tmp_path / "local", recipe))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = Infrastructure(tars=tar_reader(config))
    far = run(plan((shards, tokenizer), tmp_path / "far", recipe, infrastructure=reader))
    assert far.rows == local.rows
    for name, weight in local.model.state_dict().items():
        assert torch.equal(far.model.state_dict()[name], weight), name


def test_loader_processes_wait_for_the_store_as_threads_do(
    server: S3Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    local = list(loader(read_outline(shards).split("train")).batches(0, 8))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader, told = tar_reader(config), threading.Event()
    samples = SplitSamples(
        read_outline(shards).split("train", reader), 36, reader, patience_s=600, cache_bytes=0
    )  # fmt: skip
    samples.tars.stopped = told.is_set
    batches = TrainLoader(
        samples, sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=32, num_draws=3, flip=True), workers=Workers(num_processes=2),
    ).batches(0, 1000)  # fmt: skip
    assert all(map(same, (next(batches) for _ in range(8)), local))
    server.kill()
    threading.Timer(3, told.set).start()
    with pytest.raises(ServiceError, match=rf"^s3://\S+: no answer from {server.url}"):
        list(batches)
    assert told.is_set()
    said = [line for line in capfd.readouterr().err.splitlines() if "retrying for" in line]
    assert len(said) == 1  # of two processes
