"""Clusters of images that a split must not separate: those that share a text, or look nearly the same.

A split by row would put the same picture, or the same sentence, on both sides. Clusters are the exact connected
components of two relations: equal text, and perceptual hashes at a small Hamming distance. Few images are compared. A
hash has `max_bits + m` bands: two hashes that differ in at most `max_bits` bits agree completely in at least m bands
(pigeonhole). m grows with the number of images, so that few agree by chance.

All of it is SQL over 64-bit numbers, for DuckDB and Spark (`align.services.engine`), except for hashes that agree with
too many others under a mask, which numpy divides further. Edges become the stars of their components by the two
operations of Kiveris et al. (2014, "Connected Components in MapReduce and Beyond"), which bring every image to the
smallest one of its cluster.

The paper does not split its training data; this is our decision.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import chain, combinations, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.interfaces.sql import Engine

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


def label_images(engine: Engine, max_bits: int) -> str:
    """Finds the clusters of images.

    Args:
        engine: has the tables `kept` (image, text_hash), a row per pair, and `images` (image, phash), a row per image.
            All are 64-bit numbers.
        max_bits: hashes that differ in at most this many bits are near-duplicates; 0 is equality.

    Returns:
        The name of a table (node, label): of each image, except for the smallest one of a cluster, that smallest one.
    """
    engine.table("same_text", _equal("kept", "text_hash"))
    engine.table("same_hash", _equal("images", "phash"))
    names = ["same_text", "same_hash", *_near(engine, max_bits)]
    engine.table("edges_0", " UNION ".join(f"SELECT node, label FROM {name}" for name in names))
    for name in names:
        engine.drop(name)
    return _stars(engine)


def text_hashes(texts: Iterable[str]) -> Indices:
    """64 bits of each text, case ignored. Two of 50 million texts share them by chance with probability 1 in 15,000."""
    digests = b"".join(hashlib.blake2b(text.casefold().encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(digests, np.int64)


def _equal(table: str, column: str) -> str:
    """Edges (node, label) from each image to the smallest one with an equal value."""
    return f"""
        SELECT DISTINCT same.image AS node, smallest.label
        FROM {table} AS same JOIN (
            SELECT {column}, min(image) AS label FROM {table} GROUP BY {column} HAVING min(image) < max(image)
        ) AS smallest ON smallest.{column} = same.{column}
        WHERE same.image > smallest.label
    """


def _near(engine: Engine, max_bits: int) -> Iterator[str]:
    """Makes tables of edges between the images of distinct hashes that are near-duplicates; yields their names."""
    engine.table("hashed", "SELECT phash, min(image) AS image FROM images GROUP BY phash")
    [(num_hashes,)] = engine.rows("SELECT count(*) FROM hashed")
    for number, mask in enumerate(masks(max_bits, num_hashes) if max_bits else ()):
        band = f"(phash & CAST({mask.astype(np.int64)} AS BIGINT))"
        engine.table(
            "crowds", f"SELECT {band} AS band FROM hashed GROUP BY {band} HAVING count(*) > {_COMPARED_AT_ONCE}"
        )
        [(num_crowds,)] = engine.rows("SELECT count(*) FROM crowds")
        others = f"WHERE {band} NOT IN (SELECT band FROM crowds)" if num_crowds else ""
        banded = f"(SELECT {band} AS band, phash, image FROM hashed {others})"
        engine.table(f"near_{number}", _NEAR.format(banded=banded, max_bits=max_bits))
        yield f"near_{number}"
        if num_crowds:
            path = engine.scratch / f"crowd-{number}.parquet"
            engine.write(f"SELECT phash, image FROM hashed WHERE {band} IN (SELECT band FROM crowds)", path, "none")
            pq.write_table(_edges_of_crowds(pq.read_table(path), mask, max_bits), path)
            engine.view("crowd", path)
            engine.table(f"crowd_{number}", "SELECT node, label FROM crowd")
            yield f"crowd_{number}"
        engine.drop("crowds")
    engine.drop("hashed")


#: The engines have no common operator for an exclusive or: it is what "or" has, without what "and" has.
_NEAR = """
    SELECT greatest(one.image, other.image) AS node, least(one.image, other.image) AS label
    FROM {banded} AS one JOIN {banded} AS other ON one.band = other.band
    WHERE one.phash < other.phash
      AND bit_count((one.phash | other.phash) - (one.phash & other.phash)) <= {max_bits}
"""


def _edges_of_crowds(rows: pa.Table, mask: np.uint64, max_bits: int) -> pa.Table:
    """Edges (node, label) that join the near-duplicates among some images (phash, image)."""
    images = rows["image"].to_numpy()
    labels = _united(len(images), edges_within(rows["phash"].to_numpy().view(np.uint64), mask, max_bits))
    joined = np.flatnonzero(labels != np.arange(len(images)))
    ends = images[joined], images[labels[joined]]
    return pa.table({"node": np.maximum(*ends), "label": np.minimum(*ends)})


def _stars(engine: Engine) -> str:
    """From `edges_0` (node, label), each with the smaller label: a table of stars, see `label_images`.

    In turn, all neighbours of a node below it are joined to the smallest of them, and labels are replaced by their own
    smallest label, which halves the length of chains.
    """
    number = 0
    while True:
        edges = f"edges_{number}"
        engine.table("lowest", f"SELECT node, min(label) AS label FROM {edges} GROUP BY node")
        [(num_open,)] = engine.rows(f"""
            SELECT count(*) - count(DISTINCT edges.node) + count(lowest.node)
            FROM {edges} AS edges LEFT JOIN lowest ON lowest.node = edges.label
        """)
        if num_open:
            engine.table(f"edges_{number + 1}", (_LARGE_STAR if number % 2 else _SMALL_STAR).format(edges=edges))
            engine.drop(edges)
        engine.drop("lowest")
        if not num_open:
            return edges
        number += 1


_SMALL_STAR = """
    SELECT node, label FROM lowest
    UNION
    SELECT edges.label AS node, lowest.label
    FROM {edges} AS edges JOIN lowest ON lowest.node = edges.node WHERE edges.label > lowest.label
"""
_LARGE_STAR = """
    SELECT DISTINCT edges.node, coalesce(lowest.label, edges.label) AS label
    FROM {edges} AS edges LEFT JOIN lowest ON lowest.node = edges.label
"""


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
    if finer and (large := np.flatnonzero(np.repeat(sizes > _COMPARED_AT_ONCE, sizes))).size:
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
