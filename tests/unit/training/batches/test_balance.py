"""How often a sample is shown by the n-grams of its texts, and when."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from align.errors import ConfigError, CorruptError
from align.formats.shards import read_manifest
from align.model.tokenizer import TextTokenizer
from align.training.batches import balance as module
from align.training.batches.augmentation import Augmentation
from align.training.batches.balance import BalancedOrder, weights_of
from align.training.batches.index import SplitIndex
from align.training.batches.loader import TrainLoader
from align.training.batches.samples import SplitSamples
from align.training.train import run
from tests.support.training_data import finetune_config, plan, pretrain_config

#: The last two share no n-gram with others; the fourth has the first's words in another order.
TEXTS = [["Red Flag"], ["red flag", "flag of Chad"], ["a flag"], ["flag red"], ["flag"], ["icon, icon"], ["...", ""]]
#: As uneven as those of the demo, and some that are shown many times.
WEIGHTS = np.concatenate([np.random.default_rng(0).random(4600) ** 2, np.full(84, 4.0)])


@pytest.mark.parametrize("threshold", [0.5, 1.0, 3.0])
def test_a_sample_is_kept_by_any_ngram_that_others_hold_too(threshold):
    kept = {count: min(1, threshold / count) for count in (1, 2, 3, 5)}
    # red and "red flag" are held by 3 and 2 samples, flag by 5, all others by one
    both = 1 - (1 - kept[5]) * (1 - kept[3])
    red_flag = 1 - (1 - both) * (1 - kept[2])
    expected = [red_flag, red_flag, kept[5], both, kept[5], kept[1], kept[1]]
    assert weights_of(TEXTS, threshold) == pytest.approx([max(0.2, each) for each in expected])


def test_weights_are_the_same_in_processes_that_hash_otherwise():
    generator = np.random.default_rng(0)
    texts = [[" ".join(f"w{number}" for number in generator.zipf(1.5, 9) % 50)] for _ in range(200)]
    code = f"from align.training.batches.balance import weights_of; print(weights_of({texts}, 0.7).tobytes().hex())"
    run_with = [subprocess.check_output([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed})
                for seed in "12"]  # fmt: skip
    assert run_with[0] == run_with[1] == (weights_of(texts, 0.7).tobytes().hex() + "\n").encode()


def test_each_is_shown_its_share_of_every_epoch_rounded_up_or_down():
    size, order = len(WEIGHTS), BalancedOrder(3, WEIGHTS)
    expected = size * WEIGHTS / WEIGHTS.sum()
    counts = np.stack([np.bincount(order.samples(epoch, np.arange(size)), minlength=size) for epoch in range(200)])
    assert (counts.sum(axis=1) == size).all()
    assert (np.abs(counts - expected) < 1).all()
    fraction = expected % 1  # rounded up as often
    apart = (counts.mean(axis=0) - expected) / np.sqrt(fraction * (1 - fraction) / 200 + 1e-12)
    assert apart.mean() == pytest.approx(0, abs=0.05) and apart.std() == pytest.approx(1, abs=0.05)
    # which of two neighbours is rounded up differs from epoch to epoch
    up = (counts > expected).astype(float)
    assert abs(np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in up[:, :4600]])) < 0.01


def test_copies_are_in_different_batches_and_order_is_random():
    size, order = len(WEIGHTS), BalancedOrder(3, WEIGHTS)
    places = []
    for epoch in range(50):
        shown = order.samples(epoch, np.arange(size))
        assert all(len(np.unique(batch)) == len(batch) for batch in np.split(shown[: size // 256 * 256], size // 256))
        places.append(np.flatnonzero(shown >= 4600))
    tenths = np.bincount(np.concatenate(places) * 10 // size)
    assert tenths == pytest.approx(np.full(10, tenths.mean()), rel=0.1)
    equal = [BalancedOrder(0, np.ones(size)).samples(epoch, np.arange(size)) for epoch in range(2)]
    assert np.array_equal(np.sort(equal[0]), np.arange(size)) and not np.array_equal(*equal)
    assert np.abs(equal[0] - np.arange(size)).mean() / size == pytest.approx(1 / 3, abs=0.02)


def test_a_pure_function_of_seed_epoch_and_position():
    size, some = len(WEIGHTS), np.array([700, 0, 4683, 5])
    order = BalancedOrder(3, WEIGHTS)
    whole = [order.samples(epoch, np.arange(size)) for epoch in (0, 1, 2)]
    assert np.array_equal(BalancedOrder(3, WEIGHTS).samples(1, some), whole[1][some])
    assert not np.array_equal(BalancedOrder(4, WEIGHTS).samples(1, some), whole[1][some])
    others = order.replacements(1, 17)
    assert set(others.tolist()) <= set(whole[1].tolist()) and len(np.unique(others)) > 50 and len(others) == 64
    assert order.replacements(1, 18)[0] != others[0]


@pytest.fixture
def index(data):
    return SplitIndex.of(data[0], read_manifest(data[0]), "train")


def test_ranks_share_the_same_batches(index, data):
    words = TextTokenizer.load(data[1], 16)

    def texts(step, text_balance, **changes):
        samples = SplitSamples(index, 36)
        samples.text_balance = text_balance
        augmentation = Augmentation(words, 32, 3, flip=True)
        loader = TrainLoader([(samples, 1.0)], augmentation, seed=7, batch_size=8, **changes)
        with closing(loader.batches(step, step + 1)) as batches:
            return next(batches).texts

    whole = texts(4, 0.5)
    assert [text for rank in range(2) for text in texts(4, 0.5, rank=rank, world_size=2)] == whole
    assert whole != texts(4, None)


def test_unreadable_samples_and_large_splits(index, monkeypatch):
    def broken(self, sample):
        if sample == 5:
            raise CorruptError("sample 5")
        return ["a text"]

    monkeypatch.setattr(SplitSamples, "texts", broken)
    with pytest.raises(CorruptError, match="sample 5"):
        BalancedOrder.of(0, SplitSamples(index, 36), 1.0)
    order = BalancedOrder.of(0, SplitSamples(index, 36, on_corrupt="quarantine"), 1.0)
    assert 5 in order.samples(0, np.arange(24))  # and replaced as it is met
    monkeypatch.setattr(module, "SHUFFLE_BLOCK", 23)
    with pytest.raises(ConfigError, match=r"text_balance is for at most 23 training images, .* has 24; set it to null"):
        BalancedOrder.of(0, SplitSamples(index, 36), 1.0)


def test_only_pretraining_is_balanced(data, tmp_path):
    losses = {}
    for config in (pretrain_config, finetune_config):
        for threshold in (None, 0.5):
            recipe = config(num_steps=3, text_balance=threshold, warmup_steps=0)
            out = tmp_path / f"{config.__name__} {threshold}"
            losses[config, threshold] = run(plan(data, out, recipe)).rows
    assert losses[pretrain_config, None] != losses[pretrain_config, 0.5]
    assert losses[finetune_config, None] == losses[finetune_config, 0.5]
