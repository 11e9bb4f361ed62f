"""Clusters of images that a split must not separate: those that share a text, or look nearly the same.

A split by row would put the same picture, or the same sentence, on both sides. Clusters are the exact connected
components of two relations: equal text, and perceptual hashes at a small Hamming distance. Few images are compared. A
hash has `max_bits + m` bands: two hashes that differ in at most `max_bits` bits agree completely in at least m bands
(pigeonhole). m grows with the number of images, so that few agree by chance.

Nothing holds all images in memory: they come in buckets, in order, and so does everything computed of them
(`align.shard.buckets`). Components are found from the last bucket to the first (Sibeyn, Abello and Meyer 2002): a
node joins its smallest neighbour in an earlier bucket, which takes over its other edges, so no bucket is read twice.
Labels then come back from the first bucket to the last.

The paper does not split its training data; this is our decision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from itertools import chain, combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from align.shard.buckets import Buckets, by_hash

#: Edges that are united together; bounds their memory.
_EDGES_AT_ONCE = 1 << 22
#: A combination of bands may be this many bits shorter than log2(images); then about 8 images agree by chance.
_SPARE_BITS = 3
#: The most masks; each costs a pass over all images.
_MASKS = 100
#: Hashes that agree under a mask and are compared two by two; more are divided by further bits first, ...
_COMPARED_AT_ONCE = 1024
#: ... at most this often: then they are many and truly alike.
_MAX_DEPTH = 4

Indices = NDArray[np.int64]
Edges = tuple[Indices, Indices]


class Members(NamedTuple):
    """Images of some whole clusters, N of them, in any order.

    Attributes:
        images: (N,) their numbers.
        labels: (N,) of each the smallest image of its cluster.
        sizes: (N,) how many images its cluster has.
        facts: (N,) what was given with the image.
        facts_of_label: (N,) what was given with the smallest image.
    """

    images: Indices
    labels: Indices
    sizes: Indices
    facts: NDArray[Any]
    facts_of_label: NDArray[Any]


class Clusters:
    """Finds the clusters of images, which it numbers as they come.

    Args:
        folder: for its files; empty.
        count: how many buckets of images come.
        facts: name -> numpy type of what is given with each image.
    """

    def __init__(self, folder: Path, count: int, facts: Mapping[str, str]) -> None:
        self._folder, self._count, self._of_facts = folder, count, facts
        self._starts = [0]
        # equal values: one image of each bucket
        self._texts, self._hashes = (
            Buckets(folder, name, {"value": "u8", "image": "i8"}, count) for name in ("texts", "hashes")
        )
        self._edges = Buckets(folder, "edges", {"left": "i8", "right": "i8"}, count)
        self._facts = Buckets(folder, "facts", facts, count)

    def add(
        self,
        pair_images: NDArray[np.integer[Any]],
        pair_texts: NDArray[np.uint64],
        phashes: NDArray[np.uint64],
        facts: Mapping[str, NDArray[Any]],
    ) -> None:
        """Adds the next bucket of images.

        Args:
            pair_images: (P,) index of each pair's image in this bucket.
            pair_texts: (P,) digests of the pairs' texts; images with an equal one are one cluster.
            phashes: (N,) perceptual hashes of 64 bits.
            facts: (N,) values of each.
        """
        start = self._starts[-1]
        self._facts.add(len(self._starts) - 1, **facts)
        self._starts.append(start + len(phashes))
        for store, values, images in (
            (self._texts, pair_texts, pair_images.astype(np.int64)),
            (self._hashes, phashes, np.arange(len(phashes))),
        ):
            values, images = self._join_equal(values, start + images)
            store.add(by_hash(values, self._count), value=values, image=images)

    def start(self, bucket: int) -> int:
        """The number of the first image in a bucket; all images are those before bucket `count`."""
        return self._starts[bucket]

    def bucket_of(self, images: Indices) -> Indices:
        """The buckets of images."""
        return np.searchsorted(self._starts, images, side="right") - 1

    def members(self, max_bits: int) -> Iterator[Members]:
        """The images of all clusters, once all buckets are there.

        Args:
            max_bits: hashes that differ in at most this many bits are near-duplicates; 0 is equality.
        """
        self._join_all(max_bits)
        fields = {"image": "i8", "label": "i8", **self._of_facts}
        members = Buckets(self._folder, "members", fields, self._count)
        for bucket, labels in enumerate(self._labels()):
            facts = self._facts.take(bucket, keep=True)
            images = self.start(bucket) + np.arange(len(labels))
            given = {name: facts[name] for name in self._of_facts}
            members.add(self.bucket_of(labels), image=images, label=labels, **given)
        for bucket in range(self._count):
            rows, facts = members.take(bucket), self._facts.take(bucket)
            labels = rows["label"] - self.start(bucket)
            sizes = np.bincount(labels, minlength=len(facts))[labels]
            yield Members(rows["image"], rows["label"], sizes, rows[list(self._of_facts)], facts[labels])

    def _join(self, left: Indices, right: Indices) -> None:
        """Adds edges, to the bucket of their larger end."""
        left, right = np.minimum(left, right), np.maximum(left, right)
        different = left != right
        left, right = left[different], right[different]
        self._edges.add(self.bucket_of(right), left=left, right=right)

    def _join_equal(self, values: NDArray[np.uint64], images: Indices) -> tuple[NDArray[np.uint64], Indices]:
        """Joins the images of equal values to the first of them. Returns the distinct values, each with that one."""
        order = np.argsort(values, kind="stable")
        values, images = values[order], images[order]
        starts = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
        self._join(np.repeat(images[starts], np.diff(starts, append=len(values))), images)
        return values[starts], images[starts]

    def _join_all(self, max_bits: int) -> None:
        distinct = Buckets(self._folder, "distinct", {"value": "u8", "image": "i8"}, self._count)
        num_values = 0
        for bucket in range(self._count):
            rows = self._texts.take(bucket)
            self._join_equal(rows["value"], rows["image"])
            rows = self._hashes.take(bucket)
            values, images = self._join_equal(rows["value"], rows["image"])
            distinct.add(bucket, value=values, image=images)
            num_values += len(values)
        for mask in masks(max_bits, num_values) if max_bits else ():
            banded = distinct
            if self._count > 1:
                banded = Buckets(self._folder, "banded", {"value": "u8", "image": "i8"}, self._count)
                for bucket in range(self._count):
                    rows = distinct.take(bucket, keep=True)
                    banded.add(by_hash(rows["value"] & mask, self._count), value=rows["value"], image=rows["image"])
            for bucket in range(self._count):
                rows = banded.take(bucket, keep=banded is distinct)
                labels = np.arange(len(rows))
                _unite_all(labels, near_duplicates(rows["value"], mask, max_bits))
                joined = np.flatnonzero(labels != np.arange(len(rows)))
                self._join(rows["image"][labels[joined]], rows["image"][joined])

    def _labels(self) -> Iterator[Indices]:
        """The label of each image, bucket by bucket."""
        labels_of = Buckets(self._folder, "labels", {"label": "i8"}, self._count)
        # the label of the image `root` is that of `of`, an image in an earlier bucket
        asked = Buckets(self._folder, "asked", {"of": "i8", "root": "i8"}, self._count)
        for bucket in reversed(range(self._count)):
            start, end = self._starts[bucket : bucket + 2]
            edges = self._edges.take(bucket)
            labels = np.arange(start, end)
            inside = edges["left"] >= start
            _unite(labels, edges["left"][inside], edges["right"][inside], start)
            roots, others = labels[edges["right"][~inside] - start], edges["left"][~inside]
            del edges, inside
            labels_of.add(bucket, label=labels)
            order = np.lexsort((others, roots))
            roots, others = roots[order], others[order]
            is_first = np.diff(roots, prepend=-1) != 0
            smallest = others[np.maximum.accumulate(np.where(is_first, np.arange(len(roots)), 0))]
            asked.add(self.bucket_of(smallest[is_first]), of=smallest[is_first], root=roots[is_first])
            later = ~is_first & (np.diff(others, prepend=-1) != 0)
            self._join(smallest[later], others[later])
        answers = Buckets(self._folder, "answers", {"root": "i8", "label": "i8"}, self._count)
        for bucket in range(self._count):
            start, end = self._starts[bucket : bucket + 2]
            final = np.arange(start, end)
            answered = answers.take(bucket)
            final[answered["root"] - start] = answered["label"]
            labels = final[labels_of.take(bucket)["label"] - start]
            asks = asked.take(bucket)
            answers.add(self.bucket_of(asks["root"]), root=asks["root"], label=labels[asks["of"] - start])
            yield labels


def text_digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """64 bits of each text, case ignored. Two of 50 million texts share them by chance with probability 1 in 15,000."""
    digests = b"".join(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.uint64)


def near_duplicates(values: NDArray[np.uint64], mask: np.uint64, max_bits: int, depth: int = 0) -> Iterator[Edges]:
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
    if finer and (large := np.flatnonzero(np.repeat(sizes > _COMPARED_AT_ONCE, sizes))).size:
        left_in_group[large] = 0
        for one in finer:
            for left, right in near_duplicates(grouped[large], mask | one, max_bits, depth + 1):
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


def _unite_all(labels: Indices, edges: Iterable[Edges]) -> None:
    """Joins clusters in place, some edges at a time."""
    waiting: list[Edges] = []
    num_waiting = 0
    for some in chain(edges, [None]):
        if some is not None:
            waiting.append(some)
            num_waiting += len(some[0])
        if waiting and (some is None or num_waiting > _EDGES_AT_ONCE):
            left, right = (np.concatenate(side) for side in zip(*waiting, strict=True))
            _unite(labels, left, right)
            waiting, num_waiting = [], 0


def _unite(labels: Indices, left: Indices, right: Indices, start: int = 0) -> None:
    """Joins clusters in place: each root is attached to a smaller one, until no edge connects two clusters.

    Args:
        labels: of the nodes from `start` on.
        left: of each edge one node.
        right: the other one.
        start: the first node.
    """
    while True:
        ours, theirs = labels[left - start], labels[right - start]
        open_edges = ours != theirs
        if not open_edges.any():
            return
        left, right, ours, theirs = left[open_edges], right[open_edges], ours[open_edges], theirs[open_edges]
        np.minimum.at(labels, np.maximum(ours, theirs) - start, np.minimum(ours, theirs))
        while True:
            above = labels[labels - start]
            if np.array_equal(above, labels):
                break
            labels[:] = above
