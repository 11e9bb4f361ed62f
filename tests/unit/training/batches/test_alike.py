"""Groups of samples with texts that are alike: who is in them, and that each sample is shown once an epoch."""

from itertools import pairwise

import numpy as np
import pytest

from align.errors import ConfigError, CorruptError, StoppedError
from align.training.batches import alike as module
from align.training.batches.alike import Alike, AlikeOrder, clusters_of, same_texts, text_vectors
from align.training.train import run
from tests.support.training_data import MODEL, TermAt, assert_same, finetune_config, plan, pretrain_config

ANIMALS, TOOLS = ("cat", "kitten", "tiger", "lion", "puma"), ("hammer", "saw", "drill", "wrench", "pliers")
#: 60 texts about animals, 60 about tools, 30 of words of their own; of the first 60 each comes twice.
TEXTS = [
    *([f"a wild {one} animal near the {other} {place}"] for one in ANIMALS for other in ANIMALS[:3]
      for place in ("lake", "river", "jungle", "zoo")),
    *([f"steel {one} tool beside {other}", "workshop tool"][: 1 + (other == "bolts")] for one in TOOLS
      for other in ("nails", "screws", "bolts", "glue", "tape", "wood", "pipe", "wire", "rope", "tin", "oil", "rust")),
    *([" ".join(chr(97 + (7 * number + place) % 26) * 5 for place in range(3))] for number in range(30)),
]  # fmt: skip
TEXTS += [[text.upper() + " 12" for text in each] for each in TEXTS[:60]]
BATCH = 32


def order(share=0.5, seed=3, group=4, cluster=20):
    return AlikeOrder(seed, TEXTS, BATCH, Alike(share, group, cluster))


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("group", [3, 4, 8])
def test_every_sample_once_an_epoch_and_each_batch_has_its_share(share, group):
    made = order(share, group=group)
    num_batches = len(TEXTS) // BATCH
    for epoch in range(3):
        shown = made.samples(epoch, np.arange(len(TEXTS)))
        assert np.array_equal(np.sort(shown), np.arange(len(TEXTS)))
        random = np.random.default_rng(0).permutation(len(TEXTS))[: num_batches * BATCH]
        for row in random[made.groups(epoch, random)]:
            assert len(row) == group and len({made.clusters[sample] for sample in row}) == 1
            words = [TEXTS[sample][0].lower().removesuffix(" 12").split() for sample in row]
            assert len(set(map(frozenset, words))) == group
        # The groups that were kept are found again among the batches' rows, evenly.
        before = super(AlikeOrder, made)._shuffled_block(epoch, 0)
        assert np.array_equal(before[num_batches * BATCH :], shown[num_batches * BATCH :])
        kept = made.groups(epoch, before[: num_batches * BATCH])[: int(share * BATCH / group) * num_batches]
        batch_of = {sample: place // BATCH for place, sample in enumerate(shown.tolist())}
        counts = np.zeros(num_batches, dtype=int)
        for row in before[kept]:
            (batch,) = {batch_of[sample] for sample in row.tolist()}
            counts[batch] += 1
        assert np.ptp(counts) <= 1 and counts.max() <= share * BATCH / group


def test_batches_hold_more_that_is_alike_but_neighbours_are_not():
    def pairs(made):
        """Of pairs in a batch, and of pairs of neighbours, the share that is of one cluster, over epochs."""
        clusters = np.stack([order().clusters[made.samples(epoch, np.arange(192))] for epoch in range(300)])
        within = clusters.reshape(-1, 6, BATCH)
        equal = (within[..., None] == within[..., None, :]).mean(axis=(0, 1, 2, 3))
        return (equal * BATCH - 1) / (BATCH - 1), (within[..., 1:] == within[..., :-1]).mean()

    batch, neighbours = pairs(order(share=1.0))
    assert neighbours == pytest.approx(batch, rel=0.03)
    assert batch > 1.15 * pairs(module.BlockOrder(3, np.array([len(TEXTS)]), 1000))[0]


def test_an_order_is_a_function_of_seed_and_epoch():
    whole = order().samples(2, np.arange(len(TEXTS)))
    assert np.array_equal(order().samples(2, np.array([200, 0, 50])), whole[[200, 0, 50]])
    assert not np.array_equal(order().samples(1, np.arange(len(TEXTS))), whole)
    assert not np.array_equal(order(seed=4).samples(2, np.arange(len(TEXTS))), whole)
    assert set(order().replacements(2, 7).tolist()) <= set(range(len(TEXTS)))


def test_texts_are_the_same_by_their_words():
    texts = [["Cat 1"], ["dog"], ["a cat"], ["cat-2", "Dog, a"], ["a dog"], [], ["A  DOG!"], ["12"], ["7"]]
    assert same_texts(texts).tolist() == [0, 1, 2, 0, 0, 5, 0, 7, 7]


def test_vectors_are_as_close_as_tf_idf_says(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 7)
    vectors = text_vectors(TEXTS, 0)
    assert np.array_equal(vectors, np.rint(vectors))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(2048, rel=0.01)
    counts = [{} for _ in TEXTS]
    for found, texts in zip(counts, TEXTS, strict=True):
        for text in texts:
            words = "".join(" " if c.isdigit() else c for c in text.lower()).split()
            for gram in [*((w,) for w in words), *pairwise(words)]:
                found[gram] = found.get(gram, 0) + 1
            for word in words:
                padded = f" {word} "
                for start in range(len(padded) - 2):
                    found[padded[start : start + 3]] = found.get(padded[start : start + 3], 0) + 1
    names = sorted({name for found in counts for name in found}, key=str)
    exact = np.array([[1 + np.log(found[name]) if name in found else 0 for name in names] for found in counts])
    exact *= np.log((1 + len(TEXTS)) / (1 + (exact > 0).sum(axis=0)))
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    error = vectors @ vectors.T / 2048**2 - exact @ exact.T
    assert np.sqrt((error**2).mean()) < 1.2 / module._WIDTH**0.5


def test_clusters_are_those_of_plain_spherical_k_means(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 50)
    vectors = text_vectors(TEXTS, 0)
    found = clusters_of(vectors, 10, 0)
    start = module.permutation(0, 0, len(vectors), purpose=module.Purpose.ALIKE, first=4096 * 512 // 64)[:10]
    exact = vectors.astype(float)
    centroids = exact[start]
    for _ in range(10):
        expected = (exact @ centroids.T).argmax(axis=1)
        for cluster in set(expected.tolist()):
            total = exact[expected == cluster].sum(axis=0)
            centroids[cluster] = np.rint(total * 2048 / np.linalg.norm(total))
    assert np.array_equal(found, expected)
    whole = [found[:60], found[60:120]]
    assert not set(whole[0].tolist()) & set(whole[1].tolist())


def test_samples_that_cannot_be_read_have_no_texts_in_quarantine():
    class Samples:
        num_images, on_corrupt = len(TEXTS), "quarantine"

        def texts(self, sample):
            if sample == 5:
                raise CorruptError("x")
            return TEXTS[sample]

    samples = Samples()
    made = AlikeOrder.of(0, samples, BATCH, Alike(0.5, 4, 20))
    assert len(np.unique(made.samples(0, np.arange(len(TEXTS))))) == len(TEXTS)
    samples.on_corrupt = "stop"
    with pytest.raises(CorruptError):
        AlikeOrder.of(0, samples, BATCH, Alike(0.5, 4, 20))
    samples.num_images = module.SHUFFLE_BLOCK + 1
    with pytest.raises(ConfigError, match="at most 1,048,576 images"):
        AlikeOrder.of(0, samples, BATCH, Alike(0.5, 4, 20))


def test_interrupted_and_resumed_equals_uninterrupted_and_other_stages_are_as_before(data, tmp_path):
    recipe = pretrain_config(alike_share=0.5)
    uninterrupted = run(plan(data, tmp_path / "whole", recipe))
    with pytest.raises(StoppedError):
        run(plan(data, tmp_path / "parts", recipe, log=TermAt(4)))
    assert_same(run(plan(data, tmp_path / "parts", recipe)), uninterrupted)
    plain = run(plan(data, tmp_path / "plain"))
    assert plain.rows != uninterrupted.rows
    ours, theirs = (
        run(plan(data, tmp_path / f"fine{share}", finetune_config(alike_share=share))) for share in (0.5, 0)
    )
    assert_same(ours, theirs)
    more = pretrain_config(alike_share=0.5, extra_shards=[{"path": "x", "digest": "a", "weight": 1.0}])
    assert "alike_share 0.5 is of one source" in str(more.against(MODEL, 1, 1))
