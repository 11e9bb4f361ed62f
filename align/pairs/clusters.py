"""Clusters of images that must not be separated by a split: those that share a text, or look nearly the same.

A split by row would put the same picture, or the same sentence, on both sides. Clusters are the connected components
of two relations, exactly (no sampling): equal text, and perceptual hashes at a small Hamming distance. Memory and time
stay near linear in the number of images: hashes that differ in at most d bits agree wholly in at least one of d + 1
bands (pigeonhole), so only images that share a band are compared.

The paper does not split its training data; this is our decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

#: Rows compared with a whole band group at once; bounds the memory of a group that many images share.
_BLOCK = 1024


def cluster(
    num_images: int, pair_images: NDArray[np.int64], texts: Sequence[str], phashes: NDArray[np.uint64], max_bits: int
) -> NDArray[np.int64]:
    """Labels every image with the smallest index of its cluster.

    Args:
        num_images: N.
        pair_images: (P,) index of each pair's image, in [0, N).
        texts: P texts; images with an equal text are one cluster. Case is ignored.
        phashes: (N,) perceptual hashes of 64 bits.
        max_bits: hashes that differ in at most this many bits are near-duplicates; 0 is equality.

    Returns:
        (N,) labels; the label of a cluster is its smallest image index.
    """
    parents = list(range(num_images))
    first: dict[str, int] = {}
    for image, text in zip(pair_images.tolist(), texts, strict=True):
        _unite(parents, first.setdefault(text.casefold(), image), image)
    for left, right in near_duplicates(phashes, max_bits):
        _unite(parents, left, right)
    return np.fromiter((_root(parents, index) for index in range(num_images)), np.int64, num_images)


def near_duplicates(phashes: NDArray[np.uint64], max_bits: int) -> Iterator[tuple[int, int]]:
    """Yields index pairs whose hashes differ in at most `max_bits` bits, enough of them to connect all such images.

    Equal hashes are yielded as a chain (each with the first), different ones pair by pair, some of them repeatedly.
    """
    values, representatives, inverse = np.unique(phashes, return_index=True, return_inverse=True)
    for index, value in enumerate(inverse.tolist()):
        if representatives[value] != index:
            yield int(representatives[value]), index
    if max_bits == 0:
        return
    for mask in bands(max_bits + 1):
        band = values & mask
        order = np.argsort(band, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for left, right in _close(values[group], max_bits):
                yield int(representatives[group[left]]), int(representatives[group[right]])


def bands(count: int) -> list[np.uint64]:
    """`count` masks that divide 64 bits, as evenly as they can."""
    edges = [round(64 * index / count) for index in range(count + 1)]
    return [np.uint64(((1 << high) - 1) ^ ((1 << low) - 1)) for low, high in pairwise(edges)]


def _close(values: NDArray[np.uint64], max_bits: int) -> Iterator[tuple[int, int]]:
    for start in range(0, len(values) - 1, _BLOCK):
        block = values[start : start + _BLOCK]
        distances = np.bitwise_count(block[:, None] ^ values[None, start:])
        lefts, rights = np.nonzero(distances <= max_bits)
        for left, right in zip(lefts.tolist(), rights.tolist(), strict=True):
            if left < right:
                yield start + left, start + right


def _root(parents: list[int], index: int) -> int:
    root = index
    while parents[root] != root:
        root = parents[root]
    while parents[index] != root:
        parents[index], index = root, parents[index]
    return root


def _unite(parents: list[int], left: int, right: int) -> None:
    left, right = _root(parents, left), _root(parents, right)
    if left != right:
        parents[max(left, right)] = min(left, right)
