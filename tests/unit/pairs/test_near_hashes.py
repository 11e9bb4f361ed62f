from itertools import combinations

import numpy as np
import pytest

from align.pairs.near_hashes import bands, edges_within, masks
from tests.support import clusters


@pytest.mark.parametrize("count", [1, 3, 5, 17])
def test_bands_divide_the_64_bits(count):
    masks = [int(mask) for mask in bands(count)]
    assert sum(masks) == 2**64 - 1
    assert all(left & right == 0 for left, right in combinations(masks, 2))


@pytest.mark.parametrize("max_bits", [0, 1, 4, 8])
def test_edges_within_are_near(max_bits):
    _, phashes = clusters.alike(max_bits)
    phashes = np.unique(phashes)
    for mask in masks(max_bits, len(phashes)):
        for left, right in edges_within(phashes, mask, max_bits):
            assert (np.bitwise_count(phashes[left] ^ phashes[right]) <= max_bits).all() and (left != right).all()


@pytest.mark.parametrize("num_values", [1, 1000, 10**6, 10**9])
@pytest.mark.parametrize("max_bits", [0, 1, 4, 16])
def test_hashes_within_the_distance_agree_under_some_mask(max_bits, num_values):
    chosen = masks(max_bits, num_values)
    assert len(chosen) <= 100
    random = np.random.default_rng(0)
    for _ in range(300):
        flipped = sum(1 << int(bit) for bit in random.choice(64, max_bits, replace=False))
        assert any(int(mask) & flipped == 0 for mask in chosen)
    if max_bits == 4:  # so long that few of a million hashes agree by chance
        assert min(int(mask).bit_count() for mask in chosen) >= min(np.log2(num_values) - 4, 30)
