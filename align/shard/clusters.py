"""Clusters of images that a split must not separate: those that share a text, or look nearly the same.

A split by row would put the same picture, or the same sentence, on both sides. Clusters are the exact connected
components of two relations: equal text, and perceptual hashes at a small Hamming distance. Only images whose hashes
agree under a mask are compared (`align.pairs.near_hashes`).

All of it is SQL over 64-bit numbers, for DuckDB and Spark (`align.services.engine`), except for hashes that agree with
too many others under a mask, which numpy divides further. Edges become the stars of their components by the two
operations of Kiveris et al. (2014, "Connected Components in MapReduce and Beyond"), which bring every image to the
smallest one of its cluster.

The paper does not split its training data; this is our decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.interfaces.sql import Engine
from align.pairs import near_hashes


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


def text_hashes(texts: Iterable[str]) -> NDArray[np.int64]:
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
    for number, mask in enumerate(near_hashes.masks(max_bits, num_hashes) if max_bits else ()):
        band = f"(phash & CAST({mask.astype(np.int64)} AS BIGINT))"
        many = f"count(*) > {near_hashes.COMPARED_AT_ONCE}"
        engine.table("crowds", f"SELECT {band} AS band FROM hashed GROUP BY {band} HAVING {many}")
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
    labels = near_hashes.components(rows["phash"].to_numpy().view(np.uint64), mask, max_bits)
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
