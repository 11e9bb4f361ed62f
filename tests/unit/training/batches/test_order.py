"""The order of samples: a permutation at any size, well mixed, in little memory."""

import time
import tracemalloc

import numpy as np
import pytest

from align.statistics.randomness import permutation
from align.training.batches.order import CYCLE, BlockOrder, Mixture

#: 100 shards of unequal size.
COUNTS = np.random.default_rng(0).integers(50, 150, 100)
SIZE = int(COUNTS.sum())


@pytest.mark.parametrize("block", [1, 64, 997, SIZE - 1, SIZE, 10 * SIZE])
def test_every_sample_once_an_epoch_whatever_the_block(block):
    order = BlockOrder(3, COUNTS, block)
    whole = order.samples(2, np.arange(SIZE))
    assert np.array_equal(np.sort(whole), np.arange(SIZE))
    some = np.array([SIZE - 1, 0, 700, 701, 5])
    assert np.array_equal(BlockOrder(3, COUNTS, block).samples(2, some), whole[some])
    assert not np.array_equal(whole, order.samples(1, np.arange(SIZE)))
    assert not np.array_equal(whole, BlockOrder(4, COUNTS, block).samples(2, np.arange(SIZE)))


def test_a_split_that_fits_a_block_is_shuffled_as_a_whole():
    assert np.array_equal(BlockOrder(3, COUNTS, SIZE).samples(2, np.arange(SIZE)), permutation(3, 2, SIZE))


def test_a_whole_shuffle_is_as_random_as_a_permutation_is():
    shown = BlockOrder(0, COUNTS, SIZE).samples(0, np.arange(SIZE))
    displacement = np.abs(shown - np.arange(SIZE)).mean() / SIZE
    assert displacement == pytest.approx(1 / 3, abs=0.01)
    assert abs(np.corrcoef(shown[:-1], shown[1:])[0, 1]) < 4 / SIZE**0.5


def test_blocks_mix_shards_and_epochs_mix_blocks():
    order, block = BlockOrder(0, COUNTS, 2000), 2000
    num_blocks = -(-SIZE // block)
    shard_of = np.repeat(np.arange(100), COUNTS)
    shown = np.stack([order.samples(epoch, np.arange(SIZE)) for epoch in range(200)])
    shards = shard_of[shown]
    # A block draws on few shards: what range reads and page caches like.
    of_block = [len(np.unique(part)) for part in np.array_split(shards[0], num_blocks)]
    assert max(of_block) < 2 * 100 / num_blocks
    # Neighbours in a batch are of one shard as often as chance within a block has it, no more.
    same = (shards[:, 1:] == shards[:, :-1]).mean()
    chance = np.mean([
        np.sum((np.bincount(part, minlength=100) / len(part)) ** 2)
        for row in shards for part in np.array_split(row, num_blocks)
    ])  # fmt: skip
    assert same == pytest.approx(chance, rel=0.05)
    # Over epochs every sample is met everywhere alike: of the 200 visits a tenth falls into each tenth of the epoch.
    places = np.argsort(shown, axis=1)
    assert np.abs(places - np.arange(SIZE)).mean() / SIZE == pytest.approx(1 / 3, abs=0.01)
    tenths = np.stack([np.bincount(column, minlength=10) for column in (places * 10 // SIZE).T])
    chi2 = ((tenths - 20) ** 2 / 20).sum(axis=1)
    assert chi2.mean() == pytest.approx(9, abs=0.6)  # degrees of freedom
    # Who is shown together changes: two samples of a shard share a block always, two of others by chance.
    together = (places[:, 0] * num_blocks // SIZE == places[:, SIZE - 1] * num_blocks // SIZE).mean()
    assert together == pytest.approx(1 / num_blocks, abs=0.07)
    # Within a block there is no order left.
    inner = [np.corrcoef(part[:-1], part[1:])[0, 1] for row in shown[:20] for part in np.array_split(row, num_blocks)]
    assert abs(np.mean(inner)) < 4 / (20 * SIZE) ** 0.5


def test_replacements_are_from_the_block_and_differ():
    order = BlockOrder(0, COUNTS, 500)
    num_blocks = -(-SIZE // 500)
    of_block = set(order.samples(4, np.arange(SIZE // num_blocks)).tolist())
    samples = order.replacements(4, 17).tolist()
    assert set(samples) <= of_block and len(set(samples)) > 50 and len(samples) == 64
    assert samples == BlockOrder(0, COUNTS, 500).replacements(4, 17).tolist()
    assert order.replacements(4, 18)[0] != samples[0]


def test_the_papers_size_takes_little_memory_and_time_wherever_one_starts():
    counts = np.full(180_000, 10_000)  # 1.8 billion (section 3)
    tracemalloc.start()
    try:
        start = time.process_time()
        order = BlockOrder(0, counts, 1 << 20)
        shown = order.samples(3, np.arange(1_234_567_890, 1_234_567_890 + 16_384))
        spent = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(shown)) == 16_384
    assert len(np.unique(shown // 10_000)) < 250  # shards: those of two blocks
    assert peak < 200 << 20 and spent < 5


def test_a_mixture_has_exact_shares_and_counts_each_source_on():
    mixture = Mixture(0, [1.0, 0.5, 0.001])
    sources, numbers = mixture.locate(np.arange(3 * CYCLE))
    for source in range(3):
        mine = numbers[sources == source]
        assert np.array_equal(np.sort(mine), np.arange(len(mine)))  # each exactly once
        assert len(mine) == pytest.approx(3 * CYCLE * [1.0, 0.5, 0.001][source] / 1.501, abs=3)
    again = Mixture(0, [2.0, 1.0, 0.002]).locate(np.array([25_000, 3]))
    assert again[0].tolist() == sources[[25_000, 3]].tolist() and again[1].tolist() == numbers[[25_000, 3]].tolist()
    assert np.array_equal(Mixture(0, [3.0]).locate(np.array([7]))[1], [7])
