"""The order of the samples: a pure function of (seed, epoch, position), in O(block) memory for any split.

The shards of a split are concatenated in random order and cut into blocks of equal size; each block is shuffled as a
whole. So a batch reads from the shards of one block only, which suits page caches and range reads, and each sample of a
block is equally likely at each position of the block. A split that fits into one block is shuffled as a whole. The
paper says nothing about order.

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

#: Images shuffled together: in smaller blocks range reads have neighbours. A smaller split is shuffled as a whole.
SHUFFLE_BLOCK = 1 << 20

#: At most this many samples of a block are tried as a replacement for one that cannot be read.
MAX_REPLACEMENTS = 64


class BlockOrder:
    """The order of one split; thread-safe.

    Args:
        seed: of the run.
        counts: (S,) number of samples in each shard.
        block: the largest number of samples shuffled together.
    """

    def __init__(self, seed: int, counts: NDArray[np.int64], block: int) -> None:
        self._seed, self._counts = seed, counts
        self.num_images = int(counts.sum())
        self._num_blocks = max(1, -(-self.num_images // block))
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # Two epochs and a few blocks: batches are prepared ahead, across their borders.
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._block = lru_cache(maxsize=4)(self._shuffled_block)

    def _shuffled_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(S,) the shards in the order of an epoch, and (S + 1,) the offset of each in their concatenation."""
        size = len(self._counts)
        # Within one block all samples are shuffled anyway.
        order = (
            np.arange(size, dtype=np.int64)
            if self._num_blocks == 1
            else permutation(self._seed, epoch, size, purpose=Purpose.SHARDS)
        )
        return order, np.concatenate([[0], np.cumsum(self._counts[order])]).astype(np.int64)

    def _edge(self, block: int) -> int:
        """First position of a block. Sizes differ by at most one sample, so no last block is too small to mix."""
        return block * self.num_images // self._num_blocks

    def _shuffled_block(self, epoch: int, block: int) -> NDArray[np.int64]:
        first, end = self._edge(block), self._edge(block + 1)
        return first + permutation(self._seed, epoch, end - first, first=first)

    def _blocks_of(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        blocks = positions * self._num_blocks // self.num_images
        edges = (blocks + 1) * self.num_images // self._num_blocks
        return blocks + (positions >= edges)

    def samples(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) positions in an epoch -> (B,) numbers of samples, in the order of the manifest."""
        offsets = np.empty_like(positions)  # in the concatenation of the shards
        blocks = self._blocks_of(positions)
        for block in np.unique(blocks):
            rows = blocks == block
            offsets[rows] = self._block(epoch, int(block))[positions[rows] - self._edge(int(block))]
        return self._samples_at(epoch, offsets)

    def replacement(self, epoch: int, position: int, attempt: int) -> int:
        """A sample of the same block that replaces an unreadable one; `attempt` is 1 to MAX_REPLACEMENTS."""
        block = int(self._blocks_of(np.array([position], dtype=np.int64))[0])
        first, end = self._edge(block), self._edge(block + 1)
        key = np.array([position], dtype=np.int64)
        bits = keyed_bits(self._seed, epoch, Purpose.REPLACEMENT, key, MAX_REPLACEMENTS)[0, attempt - 1]
        return int(self._samples_at(epoch, np.array([first + int(bits) % (end - first)], dtype=np.int64))[0])

    def _samples_at(self, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) offsets in the concatenation of an epoch's shards -> (B,) numbers of samples."""
        order, starts = self._shards(epoch)
        ranks = np.searchsorted(starts, offsets, side="right") - 1
        samples: NDArray[np.int64] = self._starts[order[ranks]] + offsets - starts[ranks]
        return samples


class Mixture:
    """The source of each position of a run, and how many samples of that source came before it.

    Args:
        seed: of the run.
        weights: of the sources; only their ratios matter.

    Raises:
        ConfigError: a weight is less than half of a CYCLE-th of the sum.
    """

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        edges = np.rint(np.cumsum([0.0, *weights]) / sum(weights) * CYCLE)
        self._counts = np.diff(edges).astype(np.int64)
        if not self._counts.all():
            raise ConfigError(
                f"extra_shards: a weight is less than 1 in {CYCLE:,} of all; raise it, or omit the shards"
            )
        self.shares = self._counts / CYCLE
        self._order = lru_cache(maxsize=4)(partial(permutation, seed, size=CYCLE, purpose=Purpose.MIXTURE))

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) positions in the run -> (B,) sources, and (B,) how many of its samples came before."""
        if len(self._counts) == 1:
            return np.zeros_like(positions), positions
        sources, numbers = np.empty_like(positions), np.empty_like(positions)
        of_cycle = np.repeat(np.arange(len(self._counts)), self._counts)  # with each sample's number among its source's
        before = np.concatenate([np.arange(count) for count in self._counts])
        for cycle in np.unique(positions // CYCLE):
            rows = positions // CYCLE == cycle
            shown = self._order(int(cycle))[positions[rows] % CYCLE]
            sources[rows] = of_cycle[shown]
            numbers[rows] = cycle * self._counts[sources[rows]] + before[shown]
        return sources, numbers
