"""An order in which a share of each batch are groups of samples with texts that are alike: harder negatives.

Once, from the texts alone: TF-IDF of words, pairs of words and character trigrams in hashed columns, projected at
random, and spherical k-means. In each epoch the members of each cluster are shuffled and cut into groups, and some of
these are spread over the batches. All vectors hold integers that are small enough for sums of products to be exact in
float32, so clusters depend neither on the number of threads nor on the CPU: all ranks find the same.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from align.durable.processes import in_threads
from align.errors import ConfigError, CorruptError
from align.statistics.randomness import Purpose, keyed_bits, permutation
from align.training.batches.order import SHUFFLE_BLOCK, BlockOrder
from align.training.batches.samples import SplitSamples

#: Columns into which n-grams are hashed.
_COLUMNS = 4096
#: Columns after the projection; a multiple of 64.
_WIDTH = 512
#: Length of a vector: a product of two is below 2 ** 24.
_LENGTH = 2048
_ITERATIONS = 10
#: Rows that are projected, or compared with all centroids, at a time.
_ROWS_AT_ONCE = 1024
_WORD = re.compile(r"[^\W\d_]+")


class Alike(NamedTuple):
    """The share of a batch that is in groups, the size of a group, and the mean size of a cluster; see `Recipe`."""

    share: float
    group: int
    cluster: int


class AlikeOrder(BlockOrder):
    """The order of a split that fits a block, by (N,) its samples' texts, for batches of `batch_size`."""

    def __init__(self, seed: int, texts: Sequence[list[str]], batch_size: int, alike: Alike) -> None:
        super().__init__(seed, np.array([len(texts)]), len(texts))
        self._batch_size, self._alike = batch_size, alike
        self._same = same_texts(texts)
        self.clusters = clusters_of(text_vectors(texts, seed), max(1, len(texts) // alike.cluster), seed)

    @classmethod
    def of(cls, seed: int, samples: SplitSamples, batch_size: int, alike: Alike) -> AlikeOrder:
        """Reads the texts of a split; unreadable samples have none in quarantine. Raises ConfigError: it is large."""

        def texts(sample: int) -> list[str]:
            try:
                return samples.texts(sample)
            except CorruptError:
                if samples.on_corrupt == "stop":
                    raise
                return []

        if samples.num_images > SHUFFLE_BLOCK:
            raise ConfigError(f"alike_share needs at most {SHUFFLE_BLOCK:,} images, not {samples.num_images:,}; set 0")
        return cls(seed, [*in_threads(texts, range(samples.num_images), torch.get_num_threads())], batch_size, alike)

    def groups(self, epoch: int, shown: NDArray[np.int64]) -> NDArray[np.int64]:
        """(G, group) indices into `shown`, (M,) samples in random order: all groups that an epoch could have.

        No two members have the same text: of those with the same, one may be in a group, another one in each epoch.
        """
        size = self._alike.group
        members = np.sort(np.unique(self._same[shown], return_index=True)[1])
        members = members[np.argsort(self.clusters[shown[members]], kind="stable")]
        _, first, counts = np.unique(self.clusters[shown[members]], return_index=True, return_counts=True)
        is_whole = np.arange(len(members)) - np.repeat(first, counts) < np.repeat(counts // size * size, counts)
        groups = members[is_whole].reshape(-1, size)
        return groups[permutation(self._seed, epoch + 1, len(groups), purpose=Purpose.ALIKE)]

    def _shuffled_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        """(N,) all samples. Those after the last whole batch are drawn from all, before there are groups."""
        samples, size = super()._shuffled_block(epoch, block), self._alike.group
        num_batches = len(samples) // self._batch_size
        num_shown = num_batches * self._batch_size
        shown, rest = np.split(samples, [num_shown])
        per_batch = int(self._alike.share * self._batch_size / size)
        groups = self.groups(epoch, shown)[: per_batch * num_batches]
        of_groups = np.arange(len(groups), dtype=np.int64) % num_batches
        room = self._batch_size - size * np.bincount(of_groups, minlength=num_batches)
        batches, is_single = np.empty(num_shown, dtype=np.int64), np.ones(num_shown, dtype=bool)
        is_single[groups] = False
        batches[groups] = of_groups[:, None]
        batches[is_single] = np.repeat(np.arange(num_batches), room)
        # Batch-norm takes neighbours in a batch together, so they are not alike.
        rows = permutation(self._seed, epoch + 1, num_shown, purpose=Purpose.ALIKE, first=num_shown)
        return np.concatenate([shown[rows[np.argsort(batches[rows], kind="stable")]], rest])


def same_texts(texts: Sequence[list[str]]) -> NDArray[np.int64]:
    """(N,) the first of the samples whose texts are the same as each one's, possibly by way of others.

    Two texts are the same if they have the same words, whatever their order, their case, and the numbers in them.
    """
    numbers: dict[frozenset[str], int] = {}
    keys = [[numbers.setdefault(frozenset(_words(text)), len(numbers)) for text in each] for each in texts]
    samples = np.repeat(np.arange(len(texts)), [len(each) for each in keys])
    flat = np.array([key for each in keys for key in each], dtype=np.int64)
    labels, before = np.arange(len(texts)), np.empty(0, dtype=np.int64)
    while not np.array_equal(labels, before):
        before, of_keys = labels.copy(), np.full(len(numbers), len(texts))
        np.minimum.at(of_keys, flat, labels[samples])
        np.minimum.at(labels, samples, of_keys[flat])
    return labels


def text_vectors(texts: Sequence[list[str]], seed: int) -> NDArray[np.float32]:
    """(N, _WIDTH) integers of length _LENGTH, up to rounding: the texts of each sample; 0 where there are no words."""
    found = [np.unique(_columns(each), return_counts=True) for each in texts]
    frequency = np.bincount(np.concatenate([columns for columns, _ in found]), minlength=_COLUMNS)
    rarity = np.log((1 + len(texts)) / (1 + frequency))
    bits = keyed_bits(seed, 0, Purpose.ALIKE, np.arange(_COLUMNS, dtype=np.int64), _WIDTH // 64)
    signs = np.unpackbits(bits.astype("<u8").view(np.uint8), axis=1).astype(np.float32) * 2 - 1
    vectors = np.empty((len(texts), _WIDTH), dtype=np.float32)
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        some = found[start : start + _ROWS_AT_ONCE]
        weights = np.zeros((len(some), _COLUMNS), dtype=np.float32)
        for row, (columns, counts) in enumerate(some):
            weights[row, columns] = np.rint(64 * (1 + np.log(counts)) * rarity[columns])
        vectors[start : start + len(some)] = _scaled(weights @ signs)
    return vectors


def clusters_of(vectors: NDArray[np.float32], num_clusters: int, seed: int) -> NDArray[np.int64]:
    """(N,) the cluster of each of (N, _WIDTH) vectors, by spherical k-means from random ones of them."""
    start = permutation(seed, 0, len(vectors), purpose=Purpose.ALIKE, first=_COLUMNS * _WIDTH // 64)
    centroids = vectors[start[:num_clusters]]
    for iteration in range(_ITERATIONS):
        parts = np.split(vectors, range(_ROWS_AT_ONCE, len(vectors), _ROWS_AT_ONCE))
        nearest = np.concatenate([np.argmax(part @ centroids.T, axis=1) for part in parts])
        if iteration == _ITERATIONS - 1:
            break
        order = np.argsort(nearest, kind="stable")
        used, first = np.unique(nearest[order], return_index=True)
        centroids[used] = _scaled(np.add.reduceat(vectors[order].astype(np.float64), first))
    return nearest.astype(np.int64)


def _scaled(vectors: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float32]:
    """(N, D) integers -> (N, D) integers of length _LENGTH, up to rounding."""
    exact = vectors.astype(np.float64)
    lengths = np.sqrt((exact**2).sum(axis=1, keepdims=True))
    scaled: NDArray[np.float32] = np.rint(exact * _LENGTH / np.maximum(lengths, 1)).astype(np.float32)
    return scaled


def _words(text: str) -> list[str]:
    """The words of a text in order, lower-cased, without digits."""
    return _WORD.findall(text.lower())


def _columns(texts: list[str]) -> NDArray[np.int64]:
    """The column of each n-gram of some texts."""
    ngrams: list[str] = []
    for words in map(_words, texts):
        ngrams += [f"={word}" for word in words] + [f"{first} {second}" for first, second in pairwise(words)]
        ngrams += [f" {word} "[start : start + 3] for word in words for start in range(len(word))]
    return np.array([zlib.crc32(ngram.encode()) % _COLUMNS for ngram in ngrams], dtype=np.int64)
