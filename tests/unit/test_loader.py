"""Batches from the tars: what they hold, and that they depend on the step alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from align.errors import ConfigError, CorruptError, DataError
from align.model.preprocess import decode
from align.pairs.formats.shards import iter_samples, read_manifest
from align.training.loader import Samples, SplitIndex, TrainLoader, some_phrases, split_index
from tests import training_data


@pytest.fixture
def index(tmp_path: Path) -> SplitIndex:
    shards, _ = training_data.write(tmp_path)
    return split_index(shards, read_manifest(shards), "train")


def loader(
    samples: Samples, *, rank: int = 0, world_size: int = 1, flip: bool = True, phrase_dropout: float = 0.0
) -> TrainLoader:
    return TrainLoader(
        samples, seed=7, batch_size=8, image_px=32, flip=flip, num_draws=3, phrase_dropout=phrase_dropout, rank=rank,
        world_size=world_size,
    )  # fmt: skip


def test_samples_are_those_of_the_shards(index: SplitIndex, tmp_path: Path) -> None:
    samples = Samples(index, 36)
    for number, sample in enumerate(iter_samples(tmp_path / "shards", "train")):
        assert samples.texts(number) == list(sample.texts)
        assert np.array_equal(samples.image(number), decode(sample.image, 36))
    assert samples.num_images == 24
    assert np.array_equal(samples.image(20), samples.image(20))  # from the cache


def test_a_batch_depends_on_its_step_alone(index: SplitIndex) -> None:
    straight = list(loader(Samples(index, 36)).batches(0, 7))
    assert len(straight) == 7
    fresh = loader(Samples(index, 36)).batch(5)
    assert torch.equal(fresh.pixels, straight[5].pixels) and fresh.texts == straight[5].texts
    assert torch.equal(fresh.draws, straight[5].draws)
    assert fresh.pixels.shape == (8, 3, 32, 32) and fresh.draws.shape == (8, 3)


def test_ranks_share_a_batch_out(index: SplitIndex) -> None:
    samples = Samples(index, 36)
    whole = loader(samples, phrase_dropout=0.5).batch(4)
    parts = [loader(samples, rank=rank, world_size=2, phrase_dropout=0.5).batch(4) for rank in range(2)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert torch.equal(torch.cat([part.draws for part in parts]), whole.draws)
    assert [text for part in parts for text in part.texts] == whole.texts


def test_an_epoch_shows_every_image_once_and_all_its_texts_in_time(index: SplitIndex) -> None:
    samples = Samples(index, 36)
    train = loader(samples)
    assert train.steps_per_epoch == 3
    by_epoch = [[text for step in range(3 * e, 3 * e + 3) for text in train.batch(step).texts] for e in range(12)]
    owners = {text: number // 16 * 16 + number % 16 for number in range(16) for text in samples.texts(number)}
    for texts in by_epoch:  # pictures 16 to 23 are called as 0 to 7 are
        counts = np.bincount([owners[text] for text in texts], minlength=16)
        assert counts.tolist() == [2] * 8 + [1] * 8
    assert {text for texts in by_epoch for text in texts} == set(owners)
    assert by_epoch[0] != by_epoch[1]


def test_phrase_dropout_shows_a_share_of_the_texts_in_part(index: SplitIndex) -> None:
    samples = Samples(index, 36)
    samples._texts = [["dog face: animal, dog"] for _ in range(24)]
    train = loader(samples, phrase_dropout=0.6)
    shown = [text for step in range(60) for text in train.batch(step).texts]
    whole = [text for text in shown if text == "dog face: animal, dog"]
    assert 0.3 < len(whole) / len(shown) < 0.5
    assert {"dog face", "animal", "dog"} < set(shown)
    sizes = np.bincount([len(text.split(", ")) for text in shown if ":" not in text], minlength=4)
    assert (sizes[1:] > 0.25 * sizes.sum()).all()  # one, two and three phrases are equally likely
    assert {text for step in range(3) for text in loader(samples).batch(step).texts} == {"dog face: animal, dog"}


def test_some_phrases() -> None:
    draws = np.array([0.4, 0.5, 0.9, 0.1, 0.3, 0.7, *[0.5] * 28])
    assert some_phrases("red heart (love, rot), 心、愛", 0.5, draws) == "love, rot, 愛"
    assert some_phrases("red heart (love, rot), 心、愛", 0.4, draws) == "red heart (love, rot), 心、愛"
    assert some_phrases("a red heart", 1.0, draws) == "a red heart"
    assert some_phrases("...", 1.0, draws) == "..."
    assert some_phrases("", 1.0, draws) == ""
    assert len(some_phrases(",".join("abcd" * 20), 1.0, draws).split(", ")) == 17


def test_smaller_images_are_resized_on_reading(index: SplitIndex) -> None:
    assert Samples(index, 33).image(0).shape == (33, 33, 3)


def test_too_few_images_for_a_batch(index: SplitIndex) -> None:
    with pytest.raises(ConfigError, match="batch_size 25 is more than the 24 training images"):
        TrainLoader(Samples(index, 36), seed=0, batch_size=25, image_px=32, flip=False, num_draws=1)


def test_damaged_and_missing_shards(index: SplitIndex, tmp_path: Path) -> None:
    path = Path(index.shards[0])
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(CorruptError, match="ends before its manifest says"):
        Samples(index, 36).image(5)
    path.write_bytes(b"x" * 200_000)
    with pytest.raises(CorruptError, match="sample 5: not an image"):
        Samples(index, 36).image(5)
    with pytest.raises(CorruptError, match="its json has no texts"):
        Samples(index, 36).texts(5)
    path.unlink()
    with pytest.raises(DataError, match="missing; run `align shard` again"):
        split_index(tmp_path / "shards", read_manifest(tmp_path / "shards"), "train")
