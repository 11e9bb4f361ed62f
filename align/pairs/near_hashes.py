"""Finds near-duplicates by 64-bit perceptual hashes at a small Hamming distance, without comparing all with all.

Bits are divided into bands: two hashes that differ in at most `max_bits` of them agree completely in some bands
(pigeonhole), so only hashes that agree there are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import chain, combinations, pairwise

import numpy as np
from numpy.typing import NDArray

#: Hashes that agree under a mask and are compared two by two; more are divided by further bits first, ...
COMPARED_AT_ONCE = 1024
#: ... at most this often: then they are many and truly alike.
_MAX_DEPTH = 4
#: Edges that are united together; bounds their memory.
_EDGES_AT_ONCE = 1 << 22
#: A combination of bands may be this many bits shorter than log2(hashes); then about 8 hashes agree by chance.
_SPARE_BITS = 3
#: The most masks; each costs a pass over all hashes.
_MASKS = 100

Indices = NDArray[np.int64]
Edges = tuple[Indices, Indices]


def components(values: NDArray[np.uint64], mask: np.uint64, max_bits: int) -> Indices:
    """The first of the hashes to which chains of `edges_within` join each of some distinct hashes, as (N,) indices."""
    return _united(len(values), edges_within(values, mask, max_bits))


def edges_within(values: NDArray[np.uint64], mask: np.uint64, max_bits: int, depth: int = 0) -> Iterator[Edges]:
    """Yields edges between those distinct hashes that agree under a mask and differ in at most `max_bits` bits.

    Each hash is compared with the next one of its group, then with the one after that, and so on: as many steps as the
    largest group has members, each over the hashes that have enough successors in their group. A group that is too
    large for that is divided by each of `max_bits + 1` bands of the bits that the mask leaves: hashes that are close
    agree in one of them.
    """
    band = values & mask
    order = np.argsort(band, kind="stable")
    grouped, band = values[order], band[order]
    ends = np.append(np.flatnonzero(band[1:] != band[:-1]) + 1, len(band))[: len(band)]
    sizes = np.diff(ends, prepend=0)
    left_in_group = np.repeat(ends, sizes) - np.arange(len(band)) - 1
    del band
    finer = bands(max_bits + 1, int(~mask)) if depth < _MAX_DEPTH and int(mask).bit_count() < 64 - max_bits else []
    if finer and (large := np.flatnonzero(np.repeat(sizes > COMPARED_AT_ONCE, sizes))).size:
        left_in_group[large] = 0
        for one in finer:
            for left, right in edges_within(grouped[large], mask | one, max_bits, depth + 1):
                yield order[large[left]], order[large[right]]
    position, step = np.flatnonzero(left_in_group), 1
    while len(position):
        close = position[np.bitwise_count(grouped[position] ^ grouped[position + step]) <= max_bits]
        if len(close):
            yield order[close], order[close + step]
        step += 1
        position = position[left_in_group[position] >= step]


def masks(max_bits: int, num_values: int) -> list[np.uint64]:
    """Masks of 64 bits such that two hashes that differ in at most `max_bits` bits agree under at least one of them.

    Each combines m of `max_bits + m` bands, with the smallest m whose masks are long enough for `num_values` hashes.
    """
    min_bits, m = math.log2(max(num_values, 2)) - _SPARE_BITS, 1
    while 64 * m // (max_bits + m) < min_bits and math.comb(max_bits + m + 1, m + 1) <= _MASKS:
        m += 1
    return [reduce(np.bitwise_or, some) for some in combinations(bands(max_bits + m), m)]


def bands(count: int, bits: int = 2**64 - 1) -> list[np.uint64]:
    """`count` masks that divide some bits, all 64 by default, as evenly as possible."""
    places = [place for place in range(64) if bits >> place & 1]
    edges = [round(len(places) * index / count) for index in range(count + 1)]
    return [np.uint64(sum(1 << place for place in places[low:high])) for low, high in pairwise(edges)]


def _united(num_nodes: int, edges: Iterable[Edges]) -> Indices:
    """The first node of each node's component; some edges at a time."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    labels = np.arange(num_nodes)
    waiting: list[Edges] = []
    num_waiting = 0
    for some in chain(edges, [None]):
        if some is not None:
            waiting.append(some)
            num_waiting += len(some[0])
        if waiting and (some is None or num_waiting > _EDGES_AT_ONCE):
            left, right = (labels[np.concatenate(side)] for side in zip(*waiting, strict=True))
            graph = coo_array((np.ones(len(left), bool), (left, right)), (num_nodes, num_nodes))
            components = connected_components(graph, directed=False)[1][labels]
            _, first, which = np.unique(components, return_index=True, return_inverse=True)
            labels = first[which]
            waiting, num_waiting = [], 0
    return labels
