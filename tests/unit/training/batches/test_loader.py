"""Batches from the tars: their content, and that it depends on the step alone."""

import multiprocessing
import shutil
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.errors import ConfigError, CorruptError, DataError, TrainingError
from align.formats.shards import iter_samples, read_manifest
from align.model.preprocess import decode, to_pixels
from align.training.batches import loader as module
from align.training.batches.batch import Augmentation, Sampling, Workers
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.ranks.process_group import Ranks
from align.training.train import loader_processes
from tests.support import training_data
from tests.support.training_data import pretrain_config


@pytest.fixture
def index(tmp_path):
    shards, _ = training_data.write(tmp_path)
    return SplitIndex.of(shards, read_manifest(shards), "train")


def loader(
    samples, *, rank=0, world_size=1, phrase_dropout=0.0, crop_scale=(1, 1), block=1000, num_threads=1, extra=()
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: num_threads)
        return TrainLoader(
            samples, sampling=Sampling(seed=7, batch_size=8, shuffle_block=block),
            augmentation=Augmentation(32, 3, True, crop_scale, phrase_dropout),
            rank=rank, world_size=world_size, extra=extra,
        )  # fmt: skip


def test_samples_are_those_of_the_shards(index, tmp_path):
    samples = SplitSamples(index, 36)
    for number, sample in enumerate(iter_samples(tmp_path / "shards", "train")):
        assert samples.texts(number) == list(sample.texts)
        assert np.array_equal(samples.image(number), decode(sample.image, 36))
    assert samples.num_images == 24
    assert np.array_equal(samples.image(20), samples.image(20))  # from the cache


def test_an_epoch_shows_every_image_once_and_all_its_texts_in_time(index):
    samples = SplitSamples(index, 36)
    train = loader(samples)
    by_epoch = [[text for step in range(3 * e, 3 * e + 3) for text in train.batch(step).texts] for e in range(12)]
    owners = {text: number // 16 * 16 + number % 16 for number in range(16) for text in samples.texts(number)}
    for texts in by_epoch:  # pictures 16 to 23 are called as 0 to 7 are
        counts = np.bincount([owners[text] for text in texts], minlength=16)
        assert counts.tolist() == [2] * 8 + [1] * 8
    assert {text for texts in by_epoch for text in texts} == set(owners)
    assert by_epoch[0] != by_epoch[1]


def test_phrase_dropout_shows_a_share_of_the_texts_in_part(index):
    samples = SplitSamples(index, 36)
    for sample in range(24):
        samples.image(sample)
    samples._texts = [["dog face: animal, dog"] for _ in range(24)]
    train = loader(samples, phrase_dropout=0.6)
    shown = [text for step in range(60) for text in train.batch(step).texts]
    whole = [text for text in shown if text == "dog face: animal, dog"]
    assert 0.3 < len(whole) / len(shown) < 0.5
    assert {"dog face", "animal", "dog"} < set(shown)
    sizes = np.bincount([len(text.split(", ")) for text in shown if ":" not in text], minlength=4)
    assert (sizes[1:] > 0.25 * sizes.sum()).all()  # one, two and three phrases are equally likely
    assert {text for step in range(3) for text in loader(samples).batch(step).texts} == {"dog face: animal, dog"}


def test_crops_have_all_sizes_and_each_row_has_its_own_whoever_makes_it(index):
    samples = SplitSamples(index, 36)
    samples._images[:] = np.arange(36, dtype=np.uint8)[:, None, None]  # a row says where it is from
    samples._cached[:], samples._texts = True, [["a dog"] for _ in range(24)]
    shown = np.concatenate([loader(samples, crop_scale=(0.5, 1.5)).batch(step).images for step in range(60)])
    ranges = shown[:, -1, 0, 0].astype(int) - shown[:, 0, 0, 0] + 1
    assert ranges.min() < 18 and ranges.max() == 36  # of 16 to 48, of which at most 36 are the picture's
    whole = loader(samples, crop_scale=(0.5, 1.5)).batch(0).images.numpy()
    parts = [loader(samples, crop_scale=(0.5, 1.5), rank=rank, world_size=2).batch(0).images for rank in range(2)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_smaller_images_are_resized_on_reading(index):
    assert SplitSamples(index, 33).image(0).shape == (33, 33, 3)


def test_too_few_images_for_a_batch(index):
    with pytest.raises(ConfigError, match="batch_size 25 is more than the 24 training images"):
        TrainLoader(
            SplitSamples(index, 36),
            sampling=Sampling(seed=0, batch_size=25, shuffle_block=9),
            augmentation=Augmentation(image_px=32, num_draws=1, flip=False),
        )


def test_damaged_and_missing_shards(index, tmp_path):
    path = Path(index.shards[0])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CorruptError, match=r"00000\.tar: sample 5: the tar is shorter than its manifest says"):
        SplitSamples(index, 36).image(5)
    path.write_bytes(b"x" * 200_000)
    with pytest.raises(CorruptError, match="sample 5: not an image"):
        SplitSamples(index, 36).image(5)
    path.unlink()
    with pytest.raises(DataError, match=r"00000\.tar: cannot be read"):
        SplitSamples(index, 36).image(5)
    with pytest.raises(DataError, match="missing; run `align shard` again"):
        SplitIndex.of(tmp_path / "shards", read_manifest(tmp_path / "shards"), "train")


def damage(index, sample, *, json=False):
    """Overwrites an image, or its texts, in the first shard with zeros."""
    offset, size = index.read_offsets(0)[sample][2 * json :][:2].tolist()
    path = Path(index.shards[0])
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = bytes(size)
    path.chmod(0o644)
    path.write_bytes(data)


def test_quarantine_shows_others_of_the_block_and_counts(index, capsys):
    good = list(loader(SplitSamples(index, 36)).batches(0, 6))
    damage(index, 5)
    damage(index, 7, json=True)
    with pytest.raises(CorruptError, match=r"00000\.tar: sample [57]: "):
        list(loader(SplitSamples(index, 36)).batches(0, 3))
    train = loader(SplitSamples(index, 36, on_corrupt="quarantine"))
    capsys.readouterr()
    shown = list(train.batches(0, 6))
    said = [line for line in capsys.readouterr().err.splitlines() if "quarantined" in line]
    assert len(said) == 1 and "00000.tar: sample" in said[0]
    replaced = [
        [row for row in range(8) if not torch.equal(ours.images[row], theirs.images[row])]
        for ours, theirs in zip(shown, good, strict=True)
    ]
    assert [batch.num_quarantined for batch in shown] == [len(rows) for rows in replaced]
    assert train.num_quarantined == 2 * 2  # two samples, two epochs
    # The replacements are the same at another world size, without the cache, and when a run resumes.
    for world_size in (1, 2):
        parts = [
            loader(SplitSamples(index, 36, on_corrupt="quarantine", cache_bytes=0), rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for step in (4, 1):
            again = [part.batch(step) for part in parts]
            assert torch.equal(torch.cat([batch.images for batch in again]), shown[step].images)
            assert [text for batch in again for text in batch.texts] == shown[step].texts
    everywhere = [*SplitSamples(index, 36, on_corrupt="quarantine").centre_crops(np.arange(24), 32)]
    assert np.array_equal(everywhere[5], everywhere[6]) and np.array_equal(everywhere[7], everywhere[8])


def test_a_block_of_which_nothing_can_be_read_stops_even_in_quarantine(index):
    for path in map(Path, index.shards):
        path.chmod(0o644)
        path.write_bytes(b"")
    with pytest.raises(CorruptError, match="64 samples of one block cannot be read"):
        loader(SplitSamples(index, 36, on_corrupt="quarantine")).batch(0)
    with pytest.raises(CorruptError, match="none of the samples"):
        next(SplitSamples(index, 36, on_corrupt="quarantine").centre_crops(np.arange(2), 32))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_world_size_and_number_of_threads_shows_the_same_from_any_step(index, world_size, num_threads):
    whole = list(loader(SplitSamples(index, 36), block=7, phrase_dropout=0.5).batches(0, 8))
    assert to_pixels(whole[0].images).shape == (8, 3, 32, 32) and whole[0].draws.shape == (8, 3) and len(whole) == 8
    for first in (0, 5):
        ranks = [
            loader(
                SplitSamples(index, 36, cache_bytes=0), rank=rank, world_size=world_size, num_threads=num_threads,
                block=7, phrase_dropout=0.5,
            ).batches(first, 8)
            for rank in range(world_size)
        ]  # fmt: skip
        for step, parts in enumerate(zip(*ranks, strict=True), first):
            assert torch.equal(torch.cat([part.images for part in parts]), whole[step].images)
            assert torch.equal(torch.cat([part.draws for part in parts]), whole[step].draws)
            assert [text for part in parts for text in part.texts] == whole[step].texts


def test_sources_are_mixed_by_weight_each_with_its_own_epochs(index, tmp_path, monkeypatch):
    # nobody sees the 10,000 pictures, and each has one text: nothing to cut out, to draw or to choose
    monkeypatch.setattr("align.training.batches.rows.random_crop", lambda *_, **__: None)
    monkeypatch.setattr("align.training.batches.rows.uniforms", lambda *words: np.zeros((len(words[3]), words[4])))
    shards, _ = training_data.write(tmp_path / "more", num_train=6)
    more = SplitIndex.of(shards, read_manifest(shards), "train")
    main, extra = SplitSamples(index, 36), SplitSamples(more, 36)
    for sample in range(24):
        main.image(sample)
    for sample in range(6):
        extra.image(sample)
    main._texts, extra._texts = [[f"main {n}"] for n in range(24)], [[f"more {n}"] for n in range(6)]
    mixed = loader(main, extra=[(extra, 0.25)])
    texts = [text for batch in mixed.batches(0, 1250) for text in batch.texts]  # one cycle of 10,000 positions
    of_extra = [text for text in texts if text.startswith("more")]
    assert len(of_extra) == 2000
    assert sorted(np.bincount([int(text[5:]) for text in of_extra])) == [333] * 4 + [334] * 2  # epochs of six
    of_main = np.bincount([int(text[5:]) for text in texts if text.startswith("main")])
    assert of_main.sum() == 8000 and of_main.max() - of_main.min() <= 1
    by_batch = [sum(text.startswith("more") for text in texts[start : start + 8]) for start in range(0, 10_000, 8)]
    assert 0.9 < np.var(by_batch) / (8 * 0.2 * 0.8) < 1.1  # as independent draws would scatter
    assert texts[8 * 700 : 8 * 701] == loader(main, extra=[(extra, 0.25)]).batch(700).texts
    with pytest.raises(ConfigError, match=r"or lower the weight of .*/more/shards/manifest\.json"):
        loader(main, extra=[(extra, 1e3)])
    with pytest.raises(ConfigError, match="less than 1 in 10,000"):
        loader(main, extra=[(extra, 1e-6)])


class Held(SplitSamples):
    """Loads a picture when it may, and then a minute is over."""

    now_s = 0.0

    def __init__(self, index, px):
        super().__init__(index, px)
        self.may, self.loaded = threading.Event(), threading.Semaphore(0)

    def load(self, *arguments):
        assert self.may.wait(100)
        found = super().load(*arguments)
        self.now_s += 60
        self.loaded.release()
        return found


def test_waiting_is_measured(index, monkeypatch):
    samples = Held(index, 36)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: samples.now_s))
    train = loader(samples)
    samples.may.set()
    with closing(train.batches(0, 100)) as batches:
        next(batches)
        assert train.wait_s >= 8 * 60
        assert all(samples.loaded.acquire(timeout=100) for _ in range(16))  # the next batch, too
        samples.may.clear()
        before = train.wait_s
        next(batches)  # is ready
        assert train.wait_s == before
        samples.may.set()


def test_processes_by_default(monkeypatch):
    cpu, gpu = Ranks(0, 1, torch.device("cpu")), Ranks(0, 1, torch.device("cuda", 0))
    for cores, expected in ((1, 1), (2, 1), (6, 5), (32, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert loader_processes(pretrain_config(), cpu) == 0
        assert loader_processes(pretrain_config(), gpu) == expected
    assert [loader_processes(pretrain_config(num_loader_processes=n), on) for n in (0, 3) for on in (cpu, gpu)] == [
        0, 0, 3, 3,
    ]  # fmt: skip


def test_processes_share_memory_and_connections_evenly(tmp_path):
    shards, _ = training_data.write(tmp_path)

    class Far:
        num_connections = 7

        def uri(self, sha256, num_bytes):
            raise AssertionError

        def read(self, uri, offset, size):
            raise AssertionError

    index = SplitIndex.of(shards, read_manifest(shards), "train")
    image_bytes = index.num_images * 36 * 36 * 3
    samples = SplitSamples(index, 36, Far(), patience_s=3.0, on_corrupt="quarantine", cache_bytes=2 * image_bytes)
    two, three = samples.elsewhere(2)(), samples.elsewhere(3)()
    assert [opened.tars.num_connections for opened in (two, three)] == [4, 3]
    assert [len(opened._images) for opened in (two, three)] == [24, 0]
    assert two.on_corrupt == "quarantine" and two.resize_px == 36 and two.tars._patience_s == 3.0


def test_too_little_shared_memory_is_said_before_anything_starts(tmp_path, monkeypatch):
    shards, _ = training_data.write(tmp_path)
    loader = TrainLoader(
        SplitSamples(SplitIndex.of(shards, read_manifest(shards), "train"), 36),
        sampling=Sampling(seed=7, batch_size=8, shuffle_block=20),
        augmentation=Augmentation(image_px=512, num_draws=3, flip=False), workers=Workers(num_processes=2),
    )  # fmt: skip
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20 * 18 - 1))
    with pytest.raises(TrainingError, match=r"^/dev/shm has 18 MiB for the batches of loader processes, which need 18"):
        loader.batch(0)
    assert multiprocessing.active_children() == []
