import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from align.shard import buckets, clusters
from align.shard.clusters import Clusters, bands, masks, near_duplicates, text_digests

FAR = np.array([0x0, 0xFFFF, 0xFFFF0000, 0xFFFF00000000], np.uint64)  # 16 bits or more apart from each other


@pytest.fixture(params=[1, 3])
def cluster(tmp_path, request, monkeypatch):
    """Labels of images by their texts and hashes, which come in so many buckets."""
    monkeypatch.setattr(buckets, "_BUFFER_BYTES", 1 << 22 if request.param == 1 else 0)

    def labels(images, texts, phashes, max_bits):
        of_all, start = Clusters(tmp_path, request.param, {"name": "i8"}), 0
        for some in np.array_split(phashes, request.param):
            mine = (images >= start) & (images < start + len(some))
            names = {"name": 7 * np.arange(start, start + len(some))}
            of_all.add(images[mine] - start, texts[mine], some, names)
            start += len(some)
        found = np.full(len(phashes), -1)
        sizes = np.zeros(len(phashes), np.int64)
        for members in of_all.members(max_bits):
            found[members.images], sizes[members.images] = members.labels, members.sizes
            assert (members.facts["name"] == 7 * members.images).all()
            assert (members.facts_of_label["name"] == 7 * members.labels).all()
        assert np.array_equal(sizes, np.bincount(found, minlength=len(found))[found])
        assert not any(path.stat().st_size for path in tmp_path.glob("[!d]*"))  # only `distinct` is kept to the end
        return found

    return labels


def labels(cluster, pairs, phashes, max_bits):
    images = np.array([image for image, _ in pairs], np.int64)
    return cluster(images, text_digests(text for _, text in pairs), phashes, max_bits).tolist()


def test_equal_texts_join_through_chains_and_ignore_case(cluster):
    pairs = [(0, "a red fox"), (1, "b"), (2, "A Red Fox"), (2, "c"), (3, "c")]
    assert labels(cluster, pairs, FAR, 4) == [0, 1, 0, 0]


def test_texts_that_differ_do_not_join(cluster):
    assert labels(cluster, [(0, "a"), (1, "b"), (2, "c"), (3, "d")], FAR, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("bits", "joined"), [(4, True), (5, False)])
def test_hash_distance_at_the_boundary(cluster, bits, joined):
    phashes = np.array([0, (1 << bits) - 1], np.uint64)
    assert labels(cluster, [(0, "a"), (1, "b")], phashes, 4) == [0, 0 if joined else 1]


def test_equal_hashes_join_at_distance_0(cluster):
    assert labels(cluster, [(0, "a"), (1, "b"), (2, "c")], np.array([7, 6, 7], np.uint64), 0) == [0, 1, 0]


@pytest.mark.parametrize("count", [1, 3, 5, 17])
def test_bands_divide_the_64_bits(count):
    masks = [int(mask) for mask in bands(count)]
    assert sum(masks) == 2**64 - 1
    assert all(left & right == 0 for left, right in combinations(masks, 2))


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize("max_bits", [0, 1, 4, 8])
def test_components_equal_those_of_comparing_all_with_all(cluster, max_bits, monkeypatch):
    """Hashes are divided twice: at 8 bits and the usual depth, blocks of 3 are divided 60,000 times."""
    monkeypatch.setattr(clusters, "_MAX_DEPTH", 2)
    random = np.random.default_rng(max_bits)
    centres = random.integers(0, 2**64, 60, np.uint64)
    flips = [sum(1 << int(bit) for bit in random.integers(0, 64, random.integers(0, 7))) for _ in range(600)]
    phashes = np.array([int(centres[index % 60]) ^ (flip % 2**64) for index, flip in enumerate(flips)], np.uint64)
    near = np.bitwise_count(phashes[:, None] ^ phashes) <= max_bits
    for mask in masks(max_bits, 600):
        for left, right in near_duplicates(phashes, mask, max_bits):
            assert near[left, right].all()
    got = cluster(np.arange(600), np.arange(600, dtype=np.uint64), phashes, max_bits)
    num_components, expected = connected_components(near)
    assert len(set(got.tolist())) == num_components == len(set(zip(got.tolist(), expected.tolist(), strict=True)))


def test_many_images_in_one_band(cluster):
    phashes = np.arange(3000, dtype=np.uint64) << np.uint64(4)  # most bands are equal for all of them
    got = cluster(np.arange(3000), np.arange(3000, dtype=np.uint64), phashes, 1)
    assert set(got.tolist()) == {0}  # single bits connect all numbers below 3000


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


def test_memory_and_time_grow_with_the_number_of_images_only(cluster):
    random = np.random.default_rng(0)
    phashes = random.integers(0, 2**64, 100_000, np.uint64)
    phashes[1::20] = phashes[::20] ^ np.uint64(0b1011)  # a tenth of them are near-duplicates
    tracemalloc.start()
    got = cluster(np.arange(100_000), np.arange(100_000, dtype=np.uint64), phashes, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    alone = np.arange(100_000)
    assert np.array_equal(got, np.where(alone % 20 == 1, alone - 1, alone))
    assert peak < 100_000 * 180


def test_hashes_that_agree_in_most_bits_are_not_all_compared(cluster, monkeypatch):
    random, count, compared = np.random.default_rng(0), np.bitwise_count, []
    monkeypatch.setattr(np, "bitwise_count", lambda values: compared.append(len(values)) or count(values))
    phashes = (random.integers(0, 2**32, 10_000, np.uint64) << np.uint64(28)) | np.uint64(0xABCDEF)
    phashes[1::20] = phashes[::20] ^ np.uint64(0b1011 << 40)
    alone = np.arange(10_000)
    got = cluster(alone, alone.astype(np.uint64), phashes, 4)
    assert (got[1::20] == got[::20]).all()
    assert sum(compared) < 10_000 * 3_000  # two by two, they would be three times as many
