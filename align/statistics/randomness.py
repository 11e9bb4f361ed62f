"""Random numbers as a pure function of (seed, epoch, position, purpose).

There is no generator state, so nothing must be saved to resume, and the numbers do not depend on how a batch is divided
into ranks, threads or micro-batches. The mixer is SplitMix64 (Steele et al., 2014).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """The purpose of a random number; each has an independent stream."""

    ORDER = 1
    TEXT = 2
    CROP = 3
    DEPTH = 4
    PHRASES = 5
    SHARDS = 6
    MIXTURE = 7
    REPLACEMENT = 8
    SENTENCE = 9
    CROP_SCALE = 11
    WORDS = 13
    ALIKE = 12
    BALANCE = 14


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_bits(seed: int, epoch: int, purpose: Purpose, positions: NDArray[np.int64], count: int) -> NDArray[np.uint64]:
    """(B,) positions -> (B, count) uniform 64-bit integers."""
    key = np.zeros(1, dtype=np.uint64)
    for part in (seed, epoch, int(purpose)):
        key = _mix(key * np.uint64(0x9E3779B97F4A7C15) + np.uint64(part + 1))
    index = positions.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)[None, :]
    return _mix(_mix(key + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)))


def uniforms(seed: int, epoch: int, purpose: Purpose, positions: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """(B,) positions -> (B, count) uniform numbers in [0, 1)."""
    bits = keyed_bits(seed, epoch, purpose, positions, count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(
    seed: int, epoch: int, size: int, *, purpose: Purpose = Purpose.ORDER, first: int = 0
) -> NDArray[np.int64]:
    """(size,) the indices 0 to size - 1 in random order, keyed by the positions `first` to `first + size`."""
    bits = keyed_bits(seed, epoch, purpose, np.arange(first, first + size, dtype=np.int64), 1)[:, 0]
    return np.argsort(bits, kind="stable").astype(np.int64)
