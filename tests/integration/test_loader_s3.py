"""Training on tars that are in a real object store only: by range, through outages, and in processes of its own."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from align.config.store import StoreConfig
from align.errors import DataError, ServiceError
from align.formats.shards import read_manifest
from align.protocols.store import Tars
from align.services.store import Objects, TarReader, keep_tar, tar_reader
from align.training.index import SplitIndex, read_outline
from align.training.loader import Batch, TrainLoader
from align.training.run import make_plan, run
from align.training.samples import Samples
from tests.support import training_data
from tests.support.s3_server import KEY, SECRET, S3Server, serve
from tests.support.training_data import MODEL, pretrain_config


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with serve(tmp_path / "server") as running:
        for name, value in {
            "AWS_ENDPOINT_URL": running.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        yield running


def store(server: S3Server, root: Path) -> StoreConfig:
    bucket = server.make_bucket("shards")
    return StoreConfig(
        objects=f"s3://{bucket}/objects", checkpoints=None, cache=root / "cache", part_size_mb=5, num_connections=4,
        num_retries=5, timeout_s=10.0,
    )  # fmt: skip


def hand_over(shards: Path, config: StoreConfig) -> None:
    """As `align shard` does: the tars go to the store, the manifest stays."""
    for split in read_manifest(shards).splits.values():
        for row in split.shards:
            keep_tar(shards / row.path, row.sha256, config)
    assert not list(shards.rglob("*.tar"))


def loader(
    index: SplitIndex, tars: Tars | None = None, patience_s: float = 0.0, rank: int = 0, of: int = 1
) -> TrainLoader:
    samples = Samples(index, 36, tars, patience_s=patience_s, cache_bytes=0)
    return TrainLoader(
        samples, seed=7, batch_size=8, image_px=32, flip=True, num_draws=3, shuffle_block=20, rank=rank, world_size=of,
        num_threads=2,
    )  # fmt: skip


def same(ours: Batch, theirs: Batch) -> bool:
    return torch.equal(ours.images, theirs.images) and ours.texts == theirs.texts


@dataclass
class Watched:
    """Counts reads, and how many are under way at a time."""

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
    config = store(server, tmp_path)
    hand_over(shards, config)
    with pytest.raises(DataError, match=r"missing.*store\.objects"):
        read_outline(shards).split("train")
    reader = tar_reader(config)
    assert reader is not None
    watched = Watched(reader)
    index = read_outline(shards).split("train", watched)
    assert all(uri.startswith("s3://shards/objects/") for uri in index.shards)
    assert all(map(same, loader(index, watched).batches(0, 10), local))
    # Samples this small are neighbours: one read a shard and batch, and no more under way than there are connections.
    assert len(watched.sizes) <= 10 * 2
    assert 1 < watched.most <= config.num_connections
    parts = [loader(index, watched, rank=rank, of=2).batches(3, 10) for rank in range(2)]
    for step, (first, second) in enumerate(zip(*parts, strict=True), 3):
        assert torch.equal(torch.cat([first.images, second.images]), local[step].images)
    # A checked copy on this machine serves in the place of the object.
    row = read_manifest(shards).splits["train"].shards[0]
    copy = Objects(config).get(row.sha256, row.num_bytes)
    assert read_outline(shards).split("train", reader).shards[0] == str(copy)
    # An object that is gone is said at once: nothing brings it back.
    Objects(config).delete(read_manifest(shards).splits["train"].shards[1].sha256)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"s3://shards/objects/.*: no such object"):
        list(loader(index, watched, patience_s=60).batches(0, 10))
    assert time.monotonic() - start < 20


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
    samples = Samples(read_outline(shards).split("train", Far()), 36, Far())
    (first, second) = samples.spans(samples.places(np.array([13, 2, 3, 12])))
    assert (first.shard, first.samples, second.shard, second.samples) == (0, [2, 3], 1, [12, 13])
    offsets = samples.index.read_offsets(0)
    assert (first.begin, first.end) == (offsets[2, 0], offsets[3, 2] + offsets[3, 3])


def test_a_store_that_is_away_for_a_while_holds_training_up_and_changes_nothing(
    server: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    local = list(loader(read_outline(shards).split("train")).batches(0, 20))
    config = store(server, tmp_path)
    hand_over(shards, config)
    reader = tar_reader(config)
    train = loader(read_outline(shards).split("train", reader), reader, patience_s=120)
    batches = train.batches(0, 20)
    shown = [next(batches) for _ in range(7)]
    start = time.monotonic()
    with server.away_for(6):
        shown += batches
        assert time.monotonic() - start > 4
    assert len(shown) == 20 and all(map(same, shown, local))
    assert train.wait_s > 4
    said = capsys.readouterr().err
    assert f"no answer from {server.url}" in said and "trying on for" in said


def test_a_store_that_stays_away_ends_training_in_time_with_its_name(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    config = store(server, tmp_path)
    hand_over(shards, config)
    reader = tar_reader(config)
    batches = loader(read_outline(shards).split("train", reader), reader, patience_s=8).batches(0, 20)
    next(batches)
    server.kill()
    start = time.monotonic()
    with pytest.raises(ServiceError, match=rf"no answer from {server.url} .*tried for \d+ s"):
        list(batches)
    assert 2 < time.monotonic() - start < 25


def test_who_leaves_in_the_middle_does_not_wait_for_the_store(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    config = store(server, tmp_path)
    hand_over(shards, config)
    reader = tar_reader(config)
    batches = loader(read_outline(shards).split("train", reader), reader, patience_s=600).batches(0, 20)
    next(batches)
    server.kill()
    time.sleep(1)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 20


def test_who_is_told_to_stop_does_not_wait_for_the_store(server: S3Server, tmp_path: Path) -> None:
    shards, _ = training_data.write(tmp_path, num_train=40)
    config = store(server, tmp_path)
    hand_over(shards, config)
    reader, told = tar_reader(config), threading.Event()
    samples = Samples(read_outline(shards).split("train", reader), 36, reader, patience_s=600, cache_bytes=0)
    server.kill()
    samples.bytes.stopped = told.is_set
    threading.Timer(2, told.set).start()
    start = time.monotonic()
    with pytest.raises(ServiceError, match=f"no answer from {server.url}"):
        samples.image(0)
    assert told.is_set() and time.monotonic() - start < 60  # one attempt of the store's own, with its retries


def test_ranks_of_their_own_read_from_the_store(server: S3Server, tmp_path: Path) -> None:
    shards, tokenizer = training_data.write(tmp_path)
    recipe = pretrain_config(num_steps=2, warmup_steps=1, num_processes=2)
    local = run(
        make_plan(recipe, MODEL, initial=None, shards=shards, tokenizer=tokenizer, checkpoints=tmp_path / "local")
    )
    config = store(server, tmp_path)
    hand_over(shards, config)
    plan = make_plan(
        recipe, MODEL, initial=None, shards=shards, tokenizer=tokenizer, checkpoints=tmp_path / "far",
        tars=tar_reader(config),
    )  # fmt: skip
    far = run(plan)
    assert far.rows == local.rows
    for name, weight in local.model.state_dict().items():
        assert torch.equal(far.model.state_dict()[name], weight), name
