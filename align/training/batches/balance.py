"""Samples with rare words are shown more often than those whose words are all frequent.

The texts of a split are a few subjects in hundreds of samples and many in a handful. An n-gram, a word or two
neighbouring ones, that c samples hold keeps each of them with the chance p = min(1, threshold / c): of a frequent one
about `threshold` samples would be kept, of each that is rarer all. A sample is kept if any of its n-grams keeps it, so
its weight is 1 - prod(1 - p). N-grams of a single sample are mostly noise, such as two tags that happen to be
neighbours, and do not count. (Most samples hold one, so most weights would be 1.)

The weights do not scale losses but say how often a sample is shown: an epoch has as many positions as there are
samples, and shows each as often as its weight is larger than the mean, rounded up or down at random.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache, partial
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from align.durable.processes import in_threads
from align.errors import ConfigError, CorruptError
from align.pairs.text import words
from align.statistics.randomness import Purpose, keyed_bits, uniforms
from align.training.batches.order import MAX_REPLACEMENTS, SHUFFLE_BLOCK
from align.training.batches.samples import SplitSamples

#: Threads that read texts; where the images fit into memory, they are decoded at the same time, once.
_READERS = 8
#: No weight is less: a sample whose only shared word is very frequent, as in "flag: Zambia", would hardly ever be shown.
_LEAST = 0.2
#: How far a sample's copies are from even distances, so that two samples do not meet again each time.
_JITTER = 0.25


class BalancedOrder:
    """The order of one split with (N,) weights: epochs of N positions, each as random as the next; thread-safe.

    The copies of a sample lie at least (1 - _JITTER) / copies of an epoch apart, up to chance: two in one batch would
    be each other's false negatives.
    """

    def __init__(self, seed: int, weights: NDArray[np.float64]) -> None:
        self._seed, self._weights = seed, weights
        self._epoch = lru_cache(maxsize=2)(self._shown)

    @classmethod
    def of(cls, seed: int, samples: SplitSamples, threshold: float) -> BalancedOrder:
        """Reads all texts of a split. Raises ConfigError: it has more samples than are shuffled together."""
        if samples.num_images > SHUFFLE_BLOCK:
            raise ConfigError(
                f"text_balance is for at most {SHUFFLE_BLOCK:,} training images, {samples.index.manifest} has "
                f"{samples.num_images:,}; set it to null"
            )
        texts = in_threads(partial(_texts, samples), range(samples.num_images), _READERS)
        return cls(seed, weights_of(texts, threshold))

    def samples(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) positions in an epoch -> (B,) numbers of samples, in the order of the manifest."""
        samples: NDArray[np.int64] = self._epoch(epoch)[positions]
        return samples

    def replacements(self, epoch: int, position: int) -> NDArray[np.int64]:
        """(MAX_REPLACEMENTS,) samples of the epoch, to be tried in turn in place of an unreadable one."""
        bits = keyed_bits(self._seed, epoch, Purpose.REPLACEMENT, np.array([position]), MAX_REPLACEMENTS)[0]
        return self.samples(epoch, (bits % np.uint64(len(self._weights))).astype(np.int64))

    def _shown(self, epoch: int) -> NDArray[np.int64]:
        """(N,) the samples of an epoch."""
        size = len(self._weights)
        draws = uniforms(self._seed, epoch, Purpose.BALANCE, np.arange(size + 1, dtype=np.int64), 3)
        # Systematic resampling, with other neighbours each epoch: a sample has those of the offset + 0, 1, ... that lie
        # on its part of a line of length N.
        order = np.argsort(draws[:size, 0], kind="stable")
        ends = np.cumsum(self._weights[order])
        ends = np.minimum(np.floor(ends / ends[-1] * size + draws[size, 0]), size).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        rows = np.repeat(np.arange(size), counts)  # of `order`, one for each copy
        copies = np.arange(size) - (ends - counts)[rows]
        places = (draws[rows, 1] + (copies + _JITTER * draws[:size, 2]) / counts[rows]) % 1
        shown: NDArray[np.int64] = order[rows][np.argsort(places, kind="stable")].astype(np.int64)
        return shown


def weights_of(texts: Iterable[list[str]], threshold: float) -> NDArray[np.float64]:
    """The texts of N samples -> (N,) weights in (0, 1], equal to the bit in every process."""
    ngrams = [{ngram for text in some for ngram in _ngrams(text)} for some in texts]
    counts = Counter(chain.from_iterable(ngrams))

    def weight(held: set[tuple[str, ...]]) -> float:
        shared = sorted(counts[ngram] for ngram in held if counts[ngram] > 1)  # a set's order is the process's own
        return max(_LEAST, 1 - math.prod(1 - min(1.0, threshold / count) for count in shared or [1]))

    return np.array([weight(held) for held in ngrams])


def _ngrams(text: str) -> Iterable[tuple[str, ...]]:
    """The words and bigrams that rule T2 of the filter counts, too."""
    unigrams = words(text)
    return chain(((word,) for word in unigrams), pairwise(unigrams))


def _texts(samples: SplitSamples, sample: int) -> list[str]:
    try:
        return samples.texts(sample)
    except CorruptError:
        if samples.on_corrupt == "stop":
            raise
        return []  # another sample will replace it
