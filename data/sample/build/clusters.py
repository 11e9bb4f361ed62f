"""Groups pictures that must not be split between training and evaluation.

Pictures are in one cluster if they have the same base code point, the same normalised label, or perceptual hashes at
most four bits apart. A split by rows would put the same drawing, or the same title, on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from items import OPENCLIPART, SHARED_IMAGES, Item, normalised
from render import Look

NEAR_BITS = 4
"""Two 64-bit hashes at most this many bits apart count as the same drawing."""
_MARGIN_BITS = 2
_BLOCK = 512


def clusters(items: Sequence[Item], looks: Mapping[str, Look]) -> list[list[Item]]:
    """The clusters, as connected components, in the order of their first item."""
    parent = list(range(len(items)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)

    for group in _groups(items):
        for other in group[1:]:
            join(group[0], other)
    hashes = np.array([looks[item.picture].phash for item in items], dtype=np.uint64)
    for i, j in near_pairs(hashes, hashes):
        if i < j:
            join(i, j)
    members: dict[int, list[Item]] = defaultdict(list)
    for i, item in enumerate(items):
        members[root(i)].append(item)
    return [members[i] for i in sorted(members)]


def near_pairs(left: np.ndarray, right: np.ndarray, bits: int = NEAR_BITS) -> list[tuple[int, int]]:
    """Index pairs of hashes (uint64, shapes [n] and [m]) at most ``bits`` apart."""
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(left), _BLOCK):
        distance = np.bitwise_count(left[start : start + _BLOCK, None] ^ right[None, :])
        rows, columns = np.nonzero(distance <= bits)
        pairs.extend(zip((rows + start).tolist(), columns.tolist(), strict=True))
    return pairs


def near_any(items: Sequence[Item], others: Sequence[Item], looks: Mapping[str, Look]) -> set[str]:
    """Keys of ``items`` whose picture nearly equals one of ``others``; the margin allows for changes by encoding."""
    if not items or not others:
        return set()
    left = np.array([looks[item.picture].phash for item in items], dtype=np.uint64)
    right = np.array([looks[item.picture].phash for item in others], dtype=np.uint64)
    return {items[i].key for i, _ in near_pairs(left, right, NEAR_BITS + _MARGIN_BITS)}


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Indices of items with one base code point, or one label (one of over ten openclipart pictures is no title)."""
    by_concept: dict[str, list[int]] = defaultdict(list)
    by_label: dict[str, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        if item.concept:
            by_concept[item.concept].append(i)
        if words := normalised(item.label):
            by_label[words].append(i)
    titles = [g for g in by_label.values() if sum(items[i].source == OPENCLIPART for i in g) <= SHARED_IMAGES]
    return [*by_concept.values(), *titles]
