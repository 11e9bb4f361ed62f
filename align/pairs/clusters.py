"""Clusters of images that a split must not separate: those that share a text, or look nearly the same.

A split by row would put the same picture, or the same sentence, on both sides. Clusters are the exact connected
components of two relations: equal text, and perceptual hashes at a small Hamming distance. Few images are compared. A
hash has `max_bits + m` bands: two hashes that differ in at most `max_bits` bits agree completely in at least m bands
(pigeonhole). m grows with the number of images, so that few agree by chance. All data is in numpy arrays: about 120
bytes per image at the peak, no Python object per image or pair.

The paper does not split its training data; this is our decision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Edges that are united together; bounds their memory.
_EDGES = 1 << 22
#: A combination of bands may be this many bits shorter than log2(images); then about 8 images agree by chance.
_SPARE_BITS = 3
#: The most masks; each costs a pass over all images.
_MASKS = 100

Edges = tuple[NDArray[np.int64], NDArray[np.int64]]


def cluster(
    num_images: int,
    pair_images: NDArray[np.integer[Any]],
    pair_texts: NDArray[np.uint64],
    phashes: NDArray[np.uint64],
    max_bits: int,
) -> NDArray[np.int64]:
    """Labels every image with the smallest index of its cluster.

    Args:
        num_images: N.
        pair_images: (P,) index of each pair's image, in [0, N).
        pair_texts: (P,) digests of the pairs' texts; images with an equal one are one cluster.
        phashes: (N,) perceptual hashes of 64 bits.
        max_bits: hashes that differ in at most this many bits are near-duplicates; 0 is equality.

    Returns:
        (N,) labels; the label of a cluster is its smallest image index.
    """
    labels = np.arange(num_images, dtype=np.int64)
    _unite(labels, *_shared(pair_texts, pair_images))
    waiting: list[Edges] = []
    for edges in near_duplicates(phashes, max_bits):
        waiting.append(edges)
        if sum(len(left) for left, _ in waiting) > _EDGES:
            _unite_all(labels, waiting)
            waiting = []
    _unite_all(labels, waiting)
    return labels


def text_digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each text, case ignored. Two of 50 million texts share them by chance with probability 1 in 15,000."""
    digests = b"".join(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)


def near_duplicates(phashes: NDArray[np.uint64], max_bits: int) -> Iterator[Edges]:
    """Yields edges (indices of left, of right) between hashes that differ in at most `max_bits` bits, enough of them to
    connect all such images.

    Equal hashes are yielded as a chain, different ones two by two, some of them repeatedly.
    """
    yield _shared(phashes, np.arange(len(phashes)))
    if max_bits == 0:
        return
    values, representatives = np.unique(phashes, return_index=True)
    for mask in masks(max_bits, len(values)):
        band = values & mask
        order = np.argsort(band, kind="stable")
        grouped, band = values[order], band[order]
        # Each hash is compared with the next one of its group, then with the one after that, and so on: as many steps
        # as the largest group has members, each over the hashes that have enough successors in their group.
        ends = np.append(np.flatnonzero(band[1:] != band[:-1]) + 1, len(band))
        left_in_group = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(band)) - 1
        del band
        position, step = np.flatnonzero(left_in_group), 1
        while len(position):
            close = position[np.bitwise_count(grouped[position] ^ grouped[position + step]) <= max_bits]
            if len(close):
                yield representatives[order[close]], representatives[order[close + step]]
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


def bands(count: int) -> list[np.uint64]:
    """`count` masks that divide 64 bits as evenly as possible."""
    edges = [round(64 * index / count) for index in range(count + 1)]
    return [np.uint64(((1 << high) - 1) ^ ((1 << low) - 1)) for low, high in pairwise(edges)]


def _shared(values: NDArray[np.uint64], images: NDArray[Any]) -> Edges:
    """Edges that connect the images of equal values, as chains."""
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    return images[order[same]], images[order[same + 1]]


def _unite_all(labels: NDArray[np.int64], edges: list[Edges]) -> None:
    if edges:
        _unite(labels, np.concatenate([left for left, _ in edges]), np.concatenate([right for _, right in edges]))


def _unite(labels: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]) -> None:
    """Joins clusters in place: each root is attached to a smaller one, until no edge connects two clusters."""
    while True:
        ours, theirs = labels[left], labels[right]
        open_edges = ours != theirs
        if not open_edges.any():
            return
        left, right, ours, theirs = left[open_edges], right[open_edges], ours[open_edges], theirs[open_edges]
        np.minimum.at(labels, np.maximum(ours, theirs), np.minimum(ours, theirs))
        while True:
            above = labels[labels]
            if np.array_equal(above, labels):
                break
            labels[:] = above
