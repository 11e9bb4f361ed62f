import tracemalloc

import numpy as np
import pytest

from align.config.infrastructure import EngineConfig
from align.services.engine import open_engine
from align.shard.clusters import label_images
from tests.support import clusters
from tests.support.params import load_params

FAR = np.array([0x0, 0xFFFF, 0xFFFF0000, 0xFFFF00000000], np.uint64)  # 16 bits or more apart from each other


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with open_engine(load_params().section(EngineConfig), tmp_path_factory.mktemp("engine")) as opened:
        yield opened


@pytest.fixture
def labels(engine, tmp_path):
    return lambda *given: clusters.labels(engine, tmp_path, *given)


def of_different_texts(phashes):
    return [(image, str(image)) for image in range(len(phashes))]


def test_equal_texts_join_through_chains_and_ignore_case(labels):
    pairs = [(0, "a red fox"), (1, "b"), (2, "A Red Fox"), (2, "c"), (3, "c")]
    assert labels(pairs, FAR, 4) == [0, 1, 0, 0]


def test_texts_that_differ_do_not_join(labels):
    assert labels([(0, "a"), (1, "b"), (2, "c"), (3, "d")], FAR, 4) == [0, 1, 2, 3]


@pytest.mark.parametrize(("bits", "joined"), [(4, True), (5, False)])
@pytest.mark.parametrize("low", [0, 60])  # also with the bit that makes a signed number negative
def test_hash_distance_at_the_boundary(labels, bits, joined, low):
    phashes = np.array([0, ((1 << bits) - 1) << low & 2**64 - 1 | (bits - 4) * (low > 0)], np.uint64)
    assert labels([(0, "a"), (1, "b")], phashes, 4) == [0, 0 if joined else 1]


def test_equal_hashes_join_at_distance_0(labels):
    assert labels([(0, "a"), (1, "b"), (2, "c")], np.array([7, 6, 7], np.uint64), 0) == [0, 1, 0]


@pytest.mark.usefixtures("any_blocks")
@pytest.mark.parametrize("max_bits", [0, 1, 4, 8])
def test_clusters_equal_those_of_comparing_all_with_all(labels, max_bits, monkeypatch):
    """Hashes are divided twice: at 8 bits and the usual depth, blocks of 3 are divided 60,000 times."""
    monkeypatch.setattr("align.pairs.near_hashes._MAX_DEPTH", 2)
    pairs, phashes = clusters.alike(max_bits)
    assert labels(pairs, phashes, max_bits) == clusters.naive(pairs, phashes, max_bits)


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_a_long_chain_is_one_cluster_after_few_rounds(engine, labels, order, monkeypatch):
    images = np.arange(2000)
    images = {"up": images, "down": images[::-1], "random": np.random.default_rng(0).permutation(images)}[order]
    links = [(image, str(place + side)) for place, image in enumerate(images.tolist()) for side in (0, 1)]
    made = []
    table = engine.table
    monkeypatch.setattr(engine, "table", lambda name, query: (made.append(name), table(name, query)))
    assert labels(links, np.arange(2000).astype(np.uint64) << np.uint64(40), 0) == [0] * 2000
    assert sum(name.startswith("edges") for name in made) <= 24  # two for each time that its length is halved


def test_many_images_in_one_band(labels):
    phashes = np.arange(3000, dtype=np.uint64) << np.uint64(4)  # most bands are equal for all of them
    assert set(labels(of_different_texts(phashes), phashes, 1)) == {0}  # single bits connect all numbers below 3000


def test_memory_in_python_does_not_grow_with_the_number_of_images(engine, tmp_path):
    random = np.random.default_rng(0)
    phashes = random.integers(0, 2**64, 100_000, np.uint64)
    phashes[1::20] = phashes[::20] ^ np.uint64(0b1011)  # a tenth of them are near-duplicates
    alone = np.arange(100_000)
    got = clusters.labels(engine, tmp_path, of_different_texts(phashes), phashes, 4)
    assert np.array_equal(got, np.where(alone % 20 == 1, alone - 1, alone))
    tracemalloc.start()
    label_images(engine, 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_hashes_that_agree_in_most_bits_are_not_all_compared(labels, monkeypatch):
    random, count, compared = np.random.default_rng(0), np.bitwise_count, []
    monkeypatch.setattr(np, "bitwise_count", lambda values: compared.append(len(values)) or count(values))
    phashes = (random.integers(0, 2**32, 10_000, np.uint64) << np.uint64(28)) | np.uint64(0xABCDEF)
    phashes[1::20] = phashes[::20] ^ np.uint64(0b1011 << 40)
    got = np.array(labels(of_different_texts(phashes), phashes, 4))
    assert (got[1::20] == got[::20]).all()
    assert 0 < sum(compared) < 10_000 * 3_000  # two by two, they would be three times as many
