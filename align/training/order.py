"""In which order samples are shown: a pure function of (seed, epoch, position), in O(block) memory at any size.

The shards of a split are put in random order and laid end to end; blocks of equal size are cut from that, and each is
shuffled as a whole. So a batch draws on the shards of one block only (what page caches and range reads like), and all
samples of a block are equally likely anywhere in it. A split that fits one block is shuffled as a whole. The paper says
nothing about order.

Several sources are mixed in cycles of `CYCLE` positions, in each of which a source has its exact share, at random
places: so how many of its samples came before a position is known without counting them, and resuming is O(1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from align.errors import ConfigError
from align.training.randomness import Purpose, keyed_bits, permutation

#: Positions in which every source has its exact share: weights are rounded to 1 / CYCLE of their sum.
CYCLE = 10_000

#: So many samples of a block are tried in the place of one that cannot be read.
MAX_STAND_INS = 64


class BlockOrder:
    """The order of one split; thread-safe.

    Args:
        seed: of the run.
        counts: (S,) samples of each shard.
        block: samples that are shuffled together, at most.
    """

    def __init__(self, seed: int, counts: NDArray[np.int64], block: int) -> None:
        self._seed, self._counts = seed, counts
        self.num_images = int(counts.sum())
        self._num_blocks = max(1, -(-self.num_images // block))
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # Two epochs and a few blocks: batches are made ahead, across their borders.
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._block = lru_cache(maxsize=4)(self._shuffled_block)

    def _shuffled_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards in the order of an epoch, and at which place each begins when they lie end to end."""
        size = len(self._counts)
        # In one block any order of the shards is as good as theirs.
        order = (
            np.arange(size, dtype=np.int64)
            if self._num_blocks == 1
            else permutation(self._seed, epoch, size, purpose=Purpose.SHARDS)
        )
        return order, np.concatenate([[0], np.cumsum(self._counts[order])]).astype(np.int64)

    def _edge(self, block: int) -> int:
        """First position of a block: they are equal to within one sample, so that no last one is too small to mix."""
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
        places = np.empty_like(positions)
        blocks = self._blocks_of(positions)
        for block in np.unique(blocks):
            rows = blocks == block
            places[rows] = self._block(epoch, int(block))[positions[rows] - self._edge(int(block))]
        return self._at(epoch, places)

    def stand_in(self, epoch: int, position: int, attempt: int) -> int:
        """A sample of the same block to take a bad one's place; `attempt` is 1 to MAX_STAND_INS."""
        block = int(self._blocks_of(np.array([position], dtype=np.int64))[0])
        first, end = self._edge(block), self._edge(block + 1)
        key = np.array([position], dtype=np.int64)
        bits = keyed_bits(self._seed, epoch, Purpose.REPLACEMENT, key, MAX_STAND_INS)[0, attempt - 1]
        return int(self._at(epoch, np.array([first + int(bits) % (end - first)], dtype=np.int64))[0])

    def _at(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        order, starts = self._shards(epoch)
        ranks = np.searchsorted(starts, places, side="right") - 1
        found: NDArray[np.int64] = self._starts[order[ranks]] + places - starts[ranks]
        return found


class Mixture:
    """Which source each position of a run shows, and how many of its samples were shown before.

    Args:
        seed: of the run.
        weights: of the sources; only their ratios count.

    Raises:
        ConfigError: a weight is less than half of a CYCLE-th of the sum.
    """

    def __init__(self, seed: int, weights: Sequence[float]) -> None:
        self._seed = seed
        shares = np.asarray(weights, dtype=np.float64) / sum(weights) * CYCLE
        counts = np.floor(shares).astype(np.int64)
        largest = np.argsort(counts - shares, kind="stable")[: CYCLE - int(counts.sum())]
        counts[largest] += 1  # what rounding down left goes to the largest remainders
        if not counts.all():
            raise ConfigError(f"extra_shards: a weight is less than 1 in {CYCLE:,} of all; raise it, or leave it out")
        self.shares = counts / CYCLE
        self._counts = counts
        self._cycle = lru_cache(maxsize=4)(self._shuffled_cycle)

    def _shuffled_cycle(self, cycle: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(CYCLE,) sources, and each position's number among those of its source."""
        numbers = np.concatenate([np.arange(count) for count in self._counts])
        order = permutation(self._seed, cycle, CYCLE, purpose=Purpose.MIXTURE)
        return np.repeat(np.arange(len(self._counts)), self._counts)[order], numbers[order]

    def locate(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(B,) positions in the run -> (B,) sources, and (B,) the number of the sample among all that it shows."""
        if len(self._counts) == 1:
            return np.zeros_like(positions), positions
        sources, numbers = np.empty_like(positions), np.empty_like(positions)
        cycles = positions // CYCLE
        for cycle in np.unique(cycles):
            rows = cycles == cycle
            of_cycle, before = self._cycle(int(cycle))
            sources[rows] = of_cycle[positions[rows] % CYCLE]
            numbers[rows] = cycle * self._counts[sources[rows]] + before[positions[rows] % CYCLE]
        return sources, numbers
