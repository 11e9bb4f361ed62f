"""Search over a million vectors, approximate beside faiss' exact one.

A million clustered vectors, 640 wide, float32: one of 1,000 topics, one of its 20 subjects, of unequal weight, and
noise in all directions. Queries are drawn like them and are none of them. Side by side:

* recall@10: the share of the ten exact neighbours that ours finds;
* CPU time of single queries;
* peak memory of a process that opens the index and searches; of one that builds it.

Peak memory is 6 GB, and 4 GB of disk are needed; minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from align.display.console import say
from align.services.vector_index import VectorIndex
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World
from tests.support.own_process import in_process

NUM, WIDTH, BLOCK, EXACT_BELOW = 1_000_000, 640, 20_000, 100_000
NUM_TOPICS, SUBJECTS_PER_TOPIC = 1_000, 20
#: Length of the noise; a subject's is 1. Vectors of one subject have a cosine of 0.6, of one topic 0.3.
NOISE = 0.8
NUM_QUERIES, NUM_SINGLE, K = 200, 8, 10
REPETITIONS = 3
FLOAT32_BYTES = NUM * WIDTH * 4

Vectors = NDArray[np.float32]


@cache
def _subjects() -> tuple[Vectors, Vectors]:
    """(20,000, WIDTH), L2-normalised, and their weights."""
    rng = np.random.default_rng(0)
    topics = _normalised(rng.standard_normal((NUM_TOPICS, 1, WIDTH), dtype=np.float32))
    own = _normalised(rng.standard_normal((NUM_TOPICS, SUBJECTS_PER_TOPIC, WIDTH), dtype=np.float32))
    weights = np.exp(rng.standard_normal(NUM_TOPICS * SUBJECTS_PER_TOPIC))
    return _normalised(topics + own).reshape(-1, WIDTH), weights / weights.sum()


def draw(number: int, seed: int) -> Vectors:
    """(number, WIDTH) float32, L2-normalised."""
    subjects, weights = _subjects()
    rng = np.random.default_rng([1, seed])
    which = rng.choice(len(subjects), size=number, p=weights)
    noise = rng.standard_normal((number, WIDTH), dtype=np.float32) * np.float32(NOISE / WIDTH**0.5)
    return _normalised(subjects[which] + noise)


def _normalised(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)


def blocks(file: Path) -> Iterator[Vectors]:
    """The vectors, some at a time."""
    with file.open("rb") as stream:
        while data := stream.read(BLOCK * WIDTH * 4):
            yield np.frombuffer(data, dtype=np.float32).reshape(-1, WIDTH)


def build_ours(folder: Path) -> None:
    VectorIndex.build(blocks(folder / "vectors"), folder / "vectors.faiss", num_vectors=NUM, exact_below=EXACT_BELOW)


def search_ours(folder: Path) -> None:
    """In a process of its own, for its peak memory: single queries, then a batch."""
    index = VectorIndex.load(folder / "vectors.faiss")
    queries = draw(NUM_QUERIES, NUM)
    for query in queries:
        index.search(query[np.newaxis], K)
    index.search(queries, K)


def draw_only(folder: Path) -> None:
    """What `search_ours` needs without an index: Python, libraries, the queries."""
    draw(NUM_QUERIES, NUM)


def run(world: World) -> list[Comparison]:
    with tempfile.TemporaryDirectory(dir=world.root) as name:
        folder = Path(name)
        with (folder / "vectors").open("wb") as file:
            for block in range(NUM // BLOCK):
                file.write(draw(BLOCK, block).data)
        say("benchmark: building")
        return measure(folder, *in_process(build_ours, folder))


def measure(folder: Path, build_s: float, build_peak: int) -> list[Comparison]:
    """Compares our index in the folder with an exact one of the same vectors."""
    peak = in_process(search_ours, folder)[1] - in_process(draw_only, folder)[1]
    ours = VectorIndex.load(folder / "vectors.faiss")
    theirs = faiss.IndexFlatIP(WIDTH)
    for vectors in blocks(folder / "vectors"):
        theirs.add(vectors)
    queries = draw(NUM_QUERIES, NUM)
    right = theirs.search(queries, K)[1]
    found = ours.search(queries, K)[1]
    recall = np.mean([len({*one} & {*other}) / K for one, other in zip(found, right, strict=True)])
    disk = sum(path.stat().st_size for path in folder.glob("vectors.*"))
    note = (
        f"recall@{K} {recall:.3f}; peak memory {peak >> 20:,} MiB, {peak / FLOAT32_BYTES:.0%} of float32; "
        f"{disk >> 20:,} MiB on disk; built in {build_s:.0f} CPU s with {build_peak >> 20:,} MiB"
    )
    ours_s, theirs_s = interleaved(partial(_ask, ours, queries), partial(_ask, theirs, queries), REPETITIONS)
    row = compare(
        "search in a million vectors, single queries", "faiss, exact", "queries / CPU s",
        items=NUM_SINGLE, ours_s=ours_s, theirs_s=theirs_s, note=note,
    )  # fmt: skip
    return [row]


def _ask(index: Any, queries: Vectors) -> None:
    for query in queries[:NUM_SINGLE]:
        index.search(query[np.newaxis], K)
