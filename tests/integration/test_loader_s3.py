"""Training on tars that only a real object store has, by range and through outages."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from align.config.infrastructure import StoreConfig
from align.errors import DataError, ServiceError
from align.formats.shards import read_manifest
from align.model.tokenizer import TextTokenizer
from align.services.s3.client import upload
from align.services.s3.store import Objects, TarReader, tar_reader
from align.training.batches import loader as loader_module
from align.training.batches.augmentation import Augmentation
from align.training.batches.batch import Batch
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.given_tars import given_data
from align.training.plan import Infrastructure
from align.training.train import run
from tests.support import given_tars, training_data
from tests.support.params import load_params
from tests.support.remote_shards import move_tars, store_config
from tests.support.s3_server import serve
from tests.support.training_data import plan, pretrain_config


@pytest.fixture
def server(tmp_path, monkeypatch):
    with serve(tmp_path / "server") as running:
        running.use(monkeypatch)
        yield running


@pytest.fixture
def loader(data):
    """Makes loaders."""
    augmentation = Augmentation(TextTokenizer.load(data[1], 16), image_px=32, num_draws=3, flip=True)

    def made(index, tars=None, patience_s=0.0, rank=0, of=1):
        samples = SplitSamples(index, 36, tars, patience_s=patience_s, cache_bytes=0)
        return TrainLoader([(samples, 1.0)], augmentation, seed=7, batch_size=8, rank=rank, world_size=of)

    return made


@dataclass
class Far:
    """Shards that only the server has, and the batches that they made here."""

    shards: Path
    reader: TarReader
    local: list[Batch]

    def index(self):
        return SplitIndex.of(self.shards, read_manifest(self.shards), "train", self.reader)


@pytest.fixture
def far(server, tmp_path, loader, monkeypatch):
    monkeypatch.setattr(loader_module, "SHUFFLE_BLOCK", 20)
    shards, _ = training_data.write(tmp_path, num_train=40)
    local = list(loader(SplitIndex.of(shards, read_manifest(shards), "train")).batches(0, 20))
    config = store_config(server, tmp_path)
    move_tars(shards, config)
    reader = tar_reader(config)
    return Far(shards, reader, local)


def same(ours, theirs):
    tensors = zip(ours.tensors(), theirs.tensors(), strict=True)
    return all(torch.equal(one, other) for one, other in tensors) and ours.texts == theirs.texts


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


def test_tars_of_others_on_a_server_are_the_same_data_and_batches(server, tmp_path, loader):
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


def test_ranges_show_what_files_show(far, loader):
    shards, local, config, watched = far.shards, far.local, far.reader.config, Watched(far.reader)
    with pytest.raises(DataError, match=r"missing.*store\.objects"):
        SplitIndex.of(shards, read_manifest(shards), "train")
    index = SplitIndex.of(shards, read_manifest(shards), "train", watched)
    assert all(uri.startswith("s3://shards/objects/") for uri in index.shards)
    assert all(map(same, loader(index, watched).batches(0, 20), local))
    assert len(watched.sizes) == 20 * 8  # one read a sample
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


def test_training_waits_for_an_unavailable_store_with_the_same_result(server, far, monkeypatch, loader):
    """The store is back some time after the loader has said that it waits."""
    train = loader(far.index(), far.reader, patience_s=200)
    said = []
    monkeypatch.setattr(train._sources[0].samples.tars, "tell", said.append)
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


def test_a_store_that_stays_unavailable_ends_training_in_time_with_its_name(server, far, loader):
    batches = loader(far.index(), far.reader, patience_s=8).batches(0, 20)
    next(batches)
    server.kill()
    with pytest.raises(ServiceError, match=rf"no answer from {server.url} .*tried for ([3-9]|\d\d+) s"):
        list(batches)


def test_a_loader_that_is_closed_does_not_wait_for_the_store(server, far, loader):
    batches = loader(far.index(), far.reader, patience_s=600).batches(0, 20)
    next(batches)
    server.kill()
    time.sleep(1)
    batches.close()  # waiting for the store takes longer than a test may


def test_a_process_told_to_stop_does_not_wait_for_the_store(server, far):
    samples, told = SplitSamples(far.index(), 36, far.reader, patience_s=600), threading.Event()
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
