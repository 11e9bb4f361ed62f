"""Training on tars that only a real object store has, by range and through an outage, and with checkpoints there."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from align.config.infrastructure import StoreConfig
from align.errors import DataError, ServiceError, StoppedError
from align.formats.shards import read_manifest
from align.model.tokenizer import TextTokenizer
from align.services.s3.client import upload
from align.services.s3.store import CheckpointMirror, Objects, checkpoint_mirror, keep_tar, tar_reader
from align.training.batches import loader as loader_module
from align.training.batches.augmentation import Augmentation
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.given_tars import given_data
from align.training.plan import Infrastructure
from align.training.train import run
from tests.support import given_tars, local_store, training_data, wait_until
from tests.support.params import load_params
from tests.support.training_data import TermAt, plan, pretrain_config


@pytest.fixture(scope="module", autouse=True)
def known(server):
    with pytest.MonkeyPatch.context() as patch:
        server.use(patch)
        yield


@pytest.fixture
def end_server(server):
    """Kills the server, which is back when the test has ended."""
    yield server.kill
    server.start()


@pytest.fixture
def loader(data, monkeypatch):
    """Makes loaders."""
    monkeypatch.setattr(loader_module, "SHUFFLE_BLOCK", 20)
    augmentation = Augmentation(TextTokenizer.load(data[1], 16), image_px=32, num_draws=3, flip=True)

    def made(index, tars=None, patience_s=0.0, rank=0, of=1):
        samples = SplitSamples(index, 36, tars, patience_s=patience_s, cache_bytes=0)
        return TrainLoader([(samples, 1.0)], augmentation, seed=7, batch_size=8, rank=rank, world_size=of)

    return made


@pytest.fixture(scope="module")
def far(server, tmp_path_factory):
    """Shards here and a copy of them whose tars only the store has, the tokenizer, and what reads the store."""
    root, bucket = tmp_path_factory.mktemp("far"), server.make_bucket("shards")
    here, tokenizer = training_data.write(root / "here", num_train=80)
    shards, _ = training_data.write(root / "far", num_train=80)
    config = local_store.config(root, objects=f"s3://{bucket}/objects", num_retries=5, timeout_s=10.0)
    for row in (row for split in read_manifest(shards).splits.values() for row in split.shards):
        keep_tar(shards / row.path, row.sha256, config)
    assert not list(shards.rglob("*.tar"))
    return here, shards, tokenizer, tar_reader(config)


def hasty(reader):
    """One that leaves all waiting to the loader."""
    return tar_reader(reader.config.model_copy(update={"num_retries": 0}))


def train_split(shards, tars=None):
    return SplitIndex.of(shards, read_manifest(shards), "train", tars)


def same(ours, theirs):
    tensors = zip(ours.tensors(), theirs.tensors(), strict=True)
    return all(torch.equal(one, other) for one, other in tensors) and ours.texts == theirs.texts


class Watched:
    """Notes how many reads run when one begins."""

    def __init__(self, tars):
        self.tars, self.num_connections, self.uri = tars, tars.num_connections, tars.uri
        self.running, self.counts = set(), []

    def read(self, *what):
        self.running.add(threading.get_ident())
        self.counts.append(len(self.running))
        try:
            return self.tars.read(*what)
        finally:
            self.running.remove(threading.get_ident())


def test_ranges_show_what_files_show(far, loader, tmp_path):
    here, shards, _, reader = far
    watched = Watched(reader)
    with pytest.raises(DataError, match=r"missing.*store\.objects"):
        train_split(shards)
    index, local = train_split(shards, watched), list(loader(train_split(here)).batches(0, 20))
    assert all(uri.startswith("s3://shards/objects/") for uri in index.shards)
    assert all(map(same, loader(index, watched).batches(0, 20), local))
    assert len(watched.counts) == 20 * 8  # one read a sample
    assert 1 < max(watched.counts) <= reader.num_connections
    parts = [loader(index, watched, rank=rank, of=2).batches(3, 10) for rank in range(2)]
    for step, (first, second) in enumerate(zip(*parts, strict=True), 3):
        assert torch.equal(torch.cat([first.images, second.images]), local[step].images)
    # A checked copy on this machine is read instead of the object.
    with_copies = reader.config.model_copy(update={"cache": tmp_path})
    row = read_manifest(shards).splits["train"].shards[0]
    assert train_split(shards, tar_reader(with_copies)).shards[0] == index.shards[0]
    copy = Objects(with_copies).get(row.sha256, row.num_bytes)
    assert train_split(shards, tar_reader(with_copies)).shards[0] == str(copy)
    # A missing object is reported at once, without retries.
    gone = replace(index, shards=(index.shards[0], "s3://shards/objects/gone.tar"))
    with pytest.raises(DataError, match=r"s3://shards/objects/.*: no such object"):
        list(loader(gone, watched, patience_s=600).batches(0, 10))  # longer than a test may take


def test_tars_of_others_on_a_server_are_the_same_data_and_batches(server, tmp_path, loader):
    folder, bucket = given_tars.write(tmp_path / "tars"), server.make_bucket("given")
    values = load_params(overrides=[f"store.cache={tmp_path}/cache", "engine.num_workers=1"])
    for tar in folder.iterdir():
        upload(values.section(StoreConfig), tar, f"s3://{bucket}/cc/{tar.name}")
    shown = []
    for spec in (str(folder), f"s3://{bucket}/cc/{{00000..00001}}.tar", f"s3://{bucket}/cc/*.tar"):
        ((index, manifest, _),) = given_data(values, [spec], "pretrain")
        reader = tar_reader(values.section(StoreConfig), given=True)
        train = loader(SplitIndex.of(index, manifest, "train", reader), reader)
        shown.append((manifest.digest, list(train.batches(0, 6))))
    (digest, batches), *others = shown
    assert [other for other, _ in others] == [digest] * 2
    assert all(map(same, batches, others[0][1]))


class Held:
    """A log function that waits at the second step, once it has written a file, until that has gone."""

    def __init__(self, file):
        self.file = file

    def __call__(self, metrics, step):
        if step == 2:
            self.file.touch()
            wait_until(lambda: not self.file.exists())


def test_ranks_wait_for_a_store_that_is_away_with_the_same_result(server, far, tmp_path, capfd):
    """The store is back some time after the ranks have begun to wait: in one epoch, nothing comes from memory."""
    here, shards, tokenizer, reader = far
    recipe, held = pretrain_config(num_processes=2, log_every_steps=1), tmp_path / "held"
    local = run(plan((here, tokenizer), tmp_path / "local", recipe))

    def away():
        wait_until(held.exists)
        server.kill()
        held.unlink()
        time.sleep(5)
        server.start()

    with ThreadPoolExecutor(1) as pool:
        outage, where = pool.submit(away), Infrastructure(tars=hasty(reader))
        trained = run(plan((shards, tokenizer), tmp_path / "far", recipe, log=Held(held), infrastructure=where))
        outage.result()
    training_data.assert_same(trained, local)
    said = capfd.readouterr().err
    assert f"no answer from {server.url}" in said and "retrying for" in said


def test_no_read_waits_in_vain_for_a_store_that_stays_away(server, end_server, far, loader):
    """One is patient for some seconds, one is of a loader that is closed, one of a process that is told to stop."""
    shards, reader, told = far[1], hasty(far[3]), threading.Event()
    index = train_split(shards, reader)
    patient, closed = (loader(index, reader, patience_s=seconds).batches(0, 20) for seconds in (8, 600))
    next(patient), next(closed)
    samples = SplitSamples(index, 36, reader, patience_s=600)
    samples.tars.stopped = told.is_set
    end_server()
    with pytest.raises(ServiceError, match=rf"no answer from {server.url} .*tried for ([3-9]|\d\d+) s"):
        list(patient)
    closed.close()  # waiting for the store takes longer than a test may
    threading.Timer(2, told.set).start()
    with pytest.raises(ServiceError, match=f"no answer from {server.url}"):
        samples.image(0)
    assert told.is_set()


class GoneLater(CheckpointMirror):
    """A server that answers at the start, with no files."""

    def names(self, run):
        return []


@pytest.mark.kill
def test_a_machine_without_checkpoints_resumes_from_the_object_store(server, end_server, data, tmp_path):
    server.make_bucket("runs")
    at, recipe = "s3://runs/of/us", pretrain_config(checkpoint_every_steps=2)
    store = load_params().section(StoreConfig)
    store = store.model_copy(update={"checkpoints": at, "num_retries": 0, "timeout_s": 5.0})

    def on(machine, mirror=None, log=None, recipe=recipe):
        where = Infrastructure(mirror=mirror or checkpoint_mirror(store))
        return plan(data, tmp_path / machine, recipe, log=log, infrastructure=where)

    def kept():
        return CheckpointMirror(store, at).names(on("here").folder().directory.name)

    whole = run(plan(data, tmp_path / "whole", recipe))
    with pytest.raises(StoppedError, match="after step 5 of 8"):
        run(on("here", log=TermAt(4)))
    assert kept() == ["step-00000004.pt", "step-00000005.pt"]
    training_data.assert_same(run(on("there")), whole)
    assert kept() == ["step-00000006.pt", "step-00000008.pt"]
    # once training has begun, it continues without the store
    other = recipe.model_copy(update={"seed": 1})
    assert run(on("refused", GoneLater(store, "s3://deleted/of/us"), recipe=other)).rows[-1]["step"] == 8
    end_server()
    with pytest.raises(ServiceError):
        run(on("nowhere"))
    assert run(on("away", GoneLater(store, at), recipe=other)).rows[-1]["step"] == 8
