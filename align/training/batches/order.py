"""The order of the samples: a pure function of (seed, epoch, position), in O(block) memory for any split.

The shards of a split are concatenated in random order and cut into blocks of equal size; each block is shuffled as a
whole. So a batch reads from the shards of one block only, whose indexes fit into memory, and each sample of a block is
equally likely at each position of the block. The paper says nothing about order.

Several sources are mixed in cycles of `CYCLE` positions. Each source has its exact share of every cycle, at random
positions. So the number of its samples before a position is known without counting, and resuming is O(1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from align.errors import ConfigError
from align.statistics.randomness import Purpose, keyed_bits, permutation

#: Positions in which every source has its exact share: weights are rounded to 1 / CYCLE of their sum.
CYCLE = 10_000
#: Images that are shuffled together; a smaller split is shuffled as a whole.
SHUFFLE_BLOCK = 1 << 20
#: At most this many samples of a block are tried as a replacement for one that cannot be read.
MAX_REPLACEMENTS = 64


def starts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(S,) sizes -> (S + 1,) where each begins in their concatenation, then the size of all."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


class BlockOrder:
    """The order of one split of (S,) `counts` samples in its shards, in blocks of at most `block`; thread-safe."""

    def __init__(self, seed: int, counts: NDArray[np.int64], block: int) -> None:
        self._seed, self._counts = seed, counts
        self._starts = starts_of(counts)
        num_images = int(self._starts[-1])
        num_blocks = max(1, -(-num_images // block))
        # First position of each block, then the number of all. Sizes differ by one at most: no last block is too small.
        self._edges = np.arange(num_blocks + 1, dtype=np.int64) * num_images // num_blocks
        # Two epochs and a few blocks: batches are prepared ahead, across their borders.
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._block = lru_cache(maxsize=4)(self._shuffled_block)

    def samples(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) positions in an epoch -> (B,) numbers of samples, in the order of the manifest."""
        offsets = np.empty_like(positions)  # in the concatenation of the shards
        blocks = np.searchsorted(self._edges, positions, side="right") - 1
        for block in np.unique(blocks).tolist():
            rows = blocks == block
            offsets[rows] = self._block(epoch, block)[positions[rows] - self._edges[block]]
        return self._samples_at(epoch, offsets)

    def replacements(self, epoch: int, position: int) -> NDArray[np.int64]:
        """(MAX_REPLACEMENTS,) samples of the same block, to be tried in turn in place of an unreadable one."""
        block = np.searchsorted(self._edges, position, side="right") - 1
        first, end = map(int, self._edges[block : block + 2])
        bits = keyed_bits(self._seed, epoch, Purpose.REPLACEMENT, np.array([position]), MAX_REPLACEMENTS)[0]
        return self._samples_at(epoch, first + (bits % np.uint64(end - first)).astype(np.int64))

    def _shuffled_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(S,) the shards in the order of an epoch, and (S + 1,) where each begins in their concatenation."""
        order = np.arange(len(self._counts), dtype=np.int64)
        if len(self._edges) > 2:  # within one block all samples are shuffled anyway
            order = permutation(self._seed, epoch, len(order), purpose=Purpose.SHARDS)
        return order, starts_of(self._counts[order])

    def _shuffled_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        first, end = map(int, self._edges[block : block + 2])
        return first + permutation(self._seed, epoch, end - first, first=first)

    def _samples_at(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) offsets in the concatenation of an epoch's shards -> (B,) numbers of samples."""
        order, starts = self._shards(epoch)
        ranks = np.searchsorted(starts, offsets, side="right") - 1
        samples: NDArray[np.int64] = self._starts[order[ranks]] + offsets - starts[ranks]
        return samples


class Mixture:
    """The source of each position of a run, and how many samples of that source came before it.

    Of `weights` only the ratios matter: `shares` has each source's share of the positions. Raises ConfigError: a weight
    is less than half of a CYCLE-th of the sum.
    """

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        edges = np.rint(np.cumsum([0.0, *weights]) / sum(weights) * CYCLE)
        self._counts = np.diff(edges).astype(np.int64)
        if not self._counts.all():
            raise ConfigError(f"extra_shards: a weight is less than 1 in {CYCLE:,} of all; raise it or omit the shards")
        self.shares = self._counts / CYCLE
        # Of a cycle before it is shuffled: the source at each position, and each sample's number among its source's.
        self._sources = np.repeat(np.arange(len(weights)), self._counts)
        self._before = np.concatenate([np.arange(count) for count in self._counts])
        self._order = lru_cache(maxsize=4)(partial(permutation, seed, size=CYCLE, purpose=Purpose.MIXTURE))

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) positions in the run -> (B,) sources, and (B,) how many of its samples came before."""
        if len(self._counts) == 1:
            return np.zeros_like(positions), positions
        sources, numbers = np.empty_like(positions), np.empty_like(positions)
        for cycle in np.unique(positions // CYCLE).tolist():
            rows = positions // CYCLE == cycle
            shown = self._order(cycle)[positions[rows] % CYCLE]
            sources[rows] = self._sources[shown]
            numbers[rows] = cycle * self._counts[sources[rows]] + self._before[shown]
        return sources, numbers
