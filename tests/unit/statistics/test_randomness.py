"""Keyed random numbers: a function of the key, however a batch is divided."""

import numpy as np

from align.statistics.randomness import Purpose, permutation, uniforms


def test_numbers_do_not_depend_on_how_positions_are_cut() -> None:
    positions = np.arange(100, dtype=np.int64)
    whole = uniforms(3, 5, Purpose.CROP, positions, 3)
    parts = [uniforms(3, 5, Purpose.CROP, positions[start : start + 7], 3) for start in range(0, 100, 7)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_every_part_of_the_key_matters() -> None:
    positions = np.arange(50, dtype=np.int64)
    streams = [
        uniforms(seed, epoch, purpose, positions, 1)
        for seed in (0, 1)
        for epoch in (0, 1)
        for purpose in (Purpose.TEXT, Purpose.DEPTH)
    ]
    for index, stream in enumerate(streams):
        for other in streams[:index]:
            assert abs(np.corrcoef(stream[:, 0], other[:, 0])[0, 1]) < 0.5


def test_numbers_are_uniform() -> None:
    numbers = uniforms(0, 0, Purpose.CROP, np.arange(20_000, dtype=np.int64), 2)
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    counts, _ = np.histogram(numbers[:, 0], bins=10, range=(0, 1))
    assert abs(counts - 2000).max() < 200
    assert abs(np.corrcoef(numbers[:, 0], numbers[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03


def test_the_order_of_an_epoch_is_a_permutation_of_its_own() -> None:
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == second).mean() < 0.02
    assert np.array_equal(first, permutation(0, 0, 1000))
