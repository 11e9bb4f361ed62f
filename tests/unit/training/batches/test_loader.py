"""Batches from the tars: their content, and that it depends on the step alone."""

import shutil
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from align.errors import ConfigError, CorruptError, DataError, StoppedError
from align.formats.shards import iter_samples, read_manifest
from align.model.preprocess import decode, to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.batches import augmentation
from align.training.batches import loader as module
from align.training.batches.augmentation import Augmentation
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.train import run
from tests.support import training_data
from tests.support.training_data import TermAt, plan, pretrain_config


@pytest.fixture
def index(tmp_path):
    shards, _ = training_data.write(tmp_path)
    return SplitIndex.of(shards, read_manifest(shards), "train")


@pytest.fixture
def words(data):
    return TextTokenizer.load(data[1], 16)


@pytest.fixture
def loader(words):
    def made(samples, *, rank=0, world_size=1, phrase_dropout=0.0, block=1000, num_threads=1, extra=(), batch_size=8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "get_num_threads", lambda: num_threads)
            patch.setattr(module, "SHUFFLE_BLOCK", block)
            return TrainLoader(
                [(samples, 1.0), *extra], Augmentation(words, 32, 3, flip=True, phrase_dropout=phrase_dropout),
                seed=7, batch_size=batch_size, rank=rank, world_size=world_size,
            )  # fmt: skip

    return made


def batch(loader, step):
    with closing(loader.batches(step, step + 1)) as batches:
        return next(batches)


def ids(batch):
    """The tokens of each text, without padding."""
    return [row[:n] for row, n in zip(batch.tokens.ids.tolist(), batch.tokens.lengths.tolist(), strict=True)]


def assert_whole(parts, whole):
    """The ranks' parts of a batch are the whole batch."""
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.draws for part in parts]), whole.draws)
    assert [text for part in parts for text in part.texts] == whole.texts
    assert [int(each) for part in parts for each in part.numbers] == whole.numbers.tolist()
    assert [each for part in parts for each in ids(part)] == ids(whole)
    assert sum(part.num_quarantined for part in parts) == whole.num_quarantined


def test_samples_are_those_of_the_shards(index, tmp_path):
    samples = SplitSamples(index, 36)
    for number, sample in enumerate(iter_samples(tmp_path / "shards", "train")):
        assert samples.texts(number) == list(sample.texts)
        assert np.array_equal(samples.image(number), decode(sample.image, 36))
    assert samples.num_images == 24
    assert np.array_equal(samples.image(20), samples.image(20))  # from the cache
    assert SplitSamples(index, 33).image(0).shape == (33, 33, 3)


def test_an_epoch_shows_every_image_once_and_all_its_texts_in_time(index, loader, words):
    samples = SplitSamples(index, 36)
    shown = list(loader(samples).batches(0, 36))
    by_epoch = [[text for batch in shown[3 * e : 3 * e + 3] for text in batch.texts] for e in range(12)]
    owners = {text: number // 16 * 16 + number % 16 for number in range(16) for text in samples.texts(number)}
    for texts in by_epoch:  # pictures 16 to 23 are called as 0 to 7 are
        counts = np.bincount([owners[text] for text in texts], minlength=16)
        assert counts.tolist() == [2] * 8 + [1] * 8
    assert {text for texts in by_epoch for text in texts} == set(owners)
    assert by_epoch[0] != by_epoch[1]
    ids, mask = words(shown[0].texts)
    assert torch.equal(shown[0].tokens.ids, ids) and shown[0].tokens.lengths.tolist() == mask.sum(1).tolist()


def test_too_few_images_for_a_batch(index, loader):
    with pytest.raises(ConfigError, match="batch_size 25 is more than the 24 training images"):
        loader(SplitSamples(index, 36), batch_size=25)


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


def damage(index, shard, sample, *, json=False):
    """Overwrites an image, or its texts, with zeros."""
    offset, size = index.read_offsets(shard)[sample][2 * json :][:2].tolist()
    path = Path(index.shards[shard])
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def test_quarantine_shows_others_of_the_block_and_counts(index, loader, capsys):
    good = list(loader(SplitSamples(index, 36)).batches(0, 6))
    damage(index, 0, 5)
    damage(index, 0, 7, json=True)
    with pytest.raises(CorruptError, match=r"00000\.tar: sample [57]: "):
        list(loader(SplitSamples(index, 36)).batches(0, 3))
    train = loader(SplitSamples(index, 36, on_corrupt="quarantine"))
    capsys.readouterr()
    shown = list(train.batches(0, 6))
    said = [line for line in capsys.readouterr().err.splitlines() if "quarantined" in line]
    assert len(said) == 1 and "00000.tar: sample" in said[0]
    replaced = [
        sum(not torch.equal(ours.images[row], theirs.images[row]) for row in range(8))
        for ours, theirs in zip(shown, good, strict=True)
    ]
    assert [batch.num_quarantined for batch in shown] == replaced
    assert train.num_quarantined == 2 * 2  # two samples, two epochs
    readable = SplitSamples(index, 36)
    for made in shown:
        assert made.numbers is not None
        for number, text in zip(made.numbers.tolist(), made.texts, strict=True):
            assert text in readable.texts(number)  # the number of the sample that is shown
    # The replacements are the same at another world size, without the cache, and when a run resumes.
    for world_size in (1, 2):
        samples = SplitSamples(index, 36, on_corrupt="quarantine", cache_bytes=0)
        parts = [loader(samples, rank=rank, world_size=world_size) for rank in range(world_size)]
        for step in (4, 1):
            assert_whole([batch(part, step) for part in parts], shown[step])
    everywhere = [*SplitSamples(index, 36, on_corrupt="quarantine").centre_crops(np.arange(24), 32)]
    assert np.array_equal(everywhere[5], everywhere[6]) and np.array_equal(everywhere[7], everywhere[8])


def test_a_block_of_which_nothing_can_be_read_stops_even_in_quarantine(index, loader):
    for path in map(Path, index.shards):
        path.chmod(0o644)
        path.write_bytes(b"")
    with pytest.raises(CorruptError, match="64 samples of one block cannot be read"):
        batch(loader(SplitSamples(index, 36, on_corrupt="quarantine")), 0)
    with pytest.raises(CorruptError, match="none of the samples"):
        next(SplitSamples(index, 36, on_corrupt="quarantine").centre_crops(np.arange(2), 32))


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_world_size_and_number_of_threads_shows_the_same_from_any_step(index, loader, world_size, num_threads):
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
            assert_whole(parts, whole[step])


def test_sources_are_mixed_by_weight_each_with_its_own_epochs(index, loader, tmp_path, monkeypatch):
    # nobody sees the 10,000 pictures, and each has one text: nothing to cut out, to draw or to choose
    monkeypatch.setattr(augmentation, "random_crop", lambda *_, **__: None)
    monkeypatch.setattr(augmentation, "uniforms", lambda *words: np.zeros((len(words[3]), words[4])))
    shards, _ = training_data.write(tmp_path / "more", num_train=6)
    main, extra = SplitSamples(index, 36), SplitSamples(SplitIndex.of(shards, read_manifest(shards), "train"), 36)
    main._texts, extra._texts = [[f"main {n}"] for n in range(24)], [[f"more {n}"] for n in range(6)]  # as in memory
    texts = [text for batch in loader(main, extra=[(extra, 0.25)]).batches(0, 1250) for text in batch.texts]  # a cycle
    of_extra = [text for text in texts if text.startswith("more")]
    assert len(of_extra) == 2000
    assert sorted(np.bincount([int(text[5:]) for text in of_extra])) == [333] * 4 + [334] * 2  # epochs of six
    of_main = np.bincount([int(text[5:]) for text in texts if text.startswith("main")])
    assert of_main.sum() == 8000 and of_main.max() - of_main.min() <= 1
    by_batch = [sum(text.startswith("more") for text in texts[start : start + 8]) for start in range(0, 10_000, 8)]
    assert 0.9 < np.var(by_batch) / (8 * 0.2 * 0.8) < 1.1  # as independent draws would scatter
    assert texts[8 * 700 : 8 * 701] == batch(loader(main, extra=[(extra, 0.25)]), 700).texts
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


def test_waiting_is_measured_and_the_next_batch_is_made_meanwhile(index, loader, monkeypatch):
    samples = Held(index, 36)

    def begins():
        """The time at which the loader begins to wait; only then samples are loaded."""
        now_s = samples.now_s
        samples.may.set()
        return now_s

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=begins))
    train = loader(samples)
    with closing(train.batches(0, 100)) as batches:
        next(batches)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: samples.now_s))
        assert train.wait_s >= 8 * 60
        assert all(samples.loaded.acquire(timeout=100) for _ in range(16))  # the next batch, too
        samples.may.clear()
        before = train.wait_s
        next(batches)  # is ready
        assert train.wait_s == before
        samples.may.set()


def test_more_shards_are_mixed_in_and_a_run_resumes_in_quarantine_to_the_same_bits(data, tmp_path):
    more, _ = training_data.write(tmp_path / "more", num_train=16)
    digest = read_manifest(more).digest
    mixed = pretrain_config(extra_shards=[{"path": str(more), "digest": digest, "weight": 0.5}])
    whole = run(plan(data, tmp_path / "whole", mixed))
    assert whole.rows != run(plan(data, tmp_path / "alone", pretrain_config())).rows
    with pytest.raises(StoppedError, match="stopped by SIGTERM after step 5 of 8"):
        run(plan(data, tmp_path / "parts", mixed, log=TermAt(4)))
    quarantine = mixed.model_copy(update={"on_corrupt_shard": "quarantine"})
    training_data.assert_same(run(plan(data, tmp_path / "parts", quarantine)), whole)
    moved = tmp_path / "moved"
    shutil.copytree(more, moved)
    folders = [
        plan(data, tmp_path, pretrain_config(extra_shards=[source])).folder().directory
        for source in (
            {"path": str(more), "digest": digest, "weight": 0.5},
            {"path": str(moved), "digest": digest, "weight": 0.5},
            {"path": str(more), "digest": digest, "weight": 0.6},
        )
    ]
    assert folders[0] == folders[1] != folders[2]  # where it is stored does not change the result
    with pytest.raises(ConfigError, match=r"has the digest [0-9a-f]+, pretrain\.extra_shards says other"):
        plan(data, tmp_path, pretrain_config(extra_shards=[{"path": str(more), "digest": "other", "weight": 1.0}]))


def test_a_damaged_shard_stops_a_run_or_is_counted_in_live_logging(index, tmp_path):
    data, live = (tmp_path / "shards", tmp_path / "tokenizer"), []
    damage(index, 1, 3)
    with pytest.raises(CorruptError, match=r"train/00001\.tar: sample 3: "):
        run(plan(data, tmp_path / "a", pretrain_config(num_steps=4)))
    quarantine = pretrain_config(num_steps=4, on_corrupt_shard="quarantine")
    run(plan(data, tmp_path / "b", quarantine, log=lambda row, step: live.append(row)))
    assert live[-1]["train/num_quarantined"] >= 1  # three steps are an epoch
