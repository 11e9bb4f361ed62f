"""Search over a million vectors: `python -m benchmarks.vectors [--write]`.

A million clustered vectors, 640 wide, float32: one of 1,000 topics, one of its 20 subjects, of unequal weight, and
noise in all directions. Queries are drawn like them and are none of them. Our approximate index is compared with faiss'
exact one, side by side:

* recall@10: the share of the ten exact neighbours that ours finds;
* CPU time of single queries, and of a batch;
* peak memory of a process that opens the index and searches; of one that builds it.

And the table of a million images, as the index opens it, with a list of Python objects, as it was opened once.

A figure below its bar ends the command with exit code 1. Peak memory is 6 GB, and 4 GB of disk are needed; minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.display.console import say
from align.formats.indexed_images import ITEMS, ImagesWriter, IndexedImage, IndexedImages
from align.services.vector_index import VectorIndex
from benchmarks.measure import Comparison, compare, in_process, interleaved
from benchmarks.page import conditions, table, write_section

TITLE = "`make bench-vectors`"
NUM, WIDTH, BLOCK, EXACT_BELOW = 1_000_000, 640, 20_000, 100_000
NUM_TOPICS, SUBJECTS_PER_TOPIC = 1_000, 20
#: Length of the noise; a subject's is 1. Vectors of one subject have a cosine of 0.6, of one topic 0.3.
NOISE = 0.8
NUM_QUERIES, NUM_SINGLE, K = 200, 8, 10
ASKED = 765_432  # the image that is looked up
REPETITIONS = 3
BAR_RECALL, BAR_SPEED, BAR_MEMORY = 0.97, 10.0, 0.25
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


def vector_rows(folder: Path) -> tuple[list[Comparison], list[str]]:
    """The rows of the table, and what is below its bar."""
    with (folder / "vectors").open("wb") as file:
        for block in range(NUM // BLOCK):
            file.write(draw(BLOCK, block).data)
    say("benchmark: building")
    return measure(folder, *in_process(build_ours, folder))


def measure(folder: Path, build_s: float, build_peak: int) -> tuple[list[Comparison], list[str]]:
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
    rows: list[Comparison] = []
    for what, some in (("single queries", NUM_SINGLE), (f"batches of {NUM_QUERIES}", NUM_QUERIES)):
        size = 1 if some == NUM_SINGLE else some
        parts = [queries[start : start + size] for start in range(0, some, size)]
        ours_s, theirs_s = interleaved(partial(_ask, ours, parts), partial(_ask, theirs, parts), REPETITIONS)
        rows.append(
            compare(
                f"search in a million vectors, {what}", "faiss, exact", "queries / CPU s",
                items=some, ours_s=ours_s, theirs_s=theirs_s, note="" if rows else note,
            )
        )  # fmt: skip
    single = rows[0]
    missed = [f"{single.what}: {single.ratio:.1f}x, not {BAR_SPEED:.0f}x"] if single.ratio < BAR_SPEED else []
    if recall < BAR_RECALL:
        missed.append(f"recall@{K} {recall:.3f}, not {BAR_RECALL}")
    if peak > BAR_MEMORY * FLOAT32_BYTES:
        missed.append(f"peak memory {peak / FLOAT32_BYTES:.0%} of float32, not {BAR_MEMORY:.0%}")
    return rows, missed


def _ask(index: Any, parts: list[Vectors]) -> None:
    for part in parts:
        index.search(part, K)


def write_items(folder: Path) -> None:
    """A table of a million images with a text of 60 characters each."""
    with ImagesWriter(folder, thumbnails=True) as images:
        for number in range(NUM):
            key = f"{number:09d}"
            text = f"a picture of number {number} that somebody has described in words"
            shard = f"train/{number // 10_000:05d}.tar"
            item = IndexedImage(key, f"{number:064x}", (text,), "train", shard, number, 9000, (key,))
            images.add(item, b"")


def open_items(folder: Path) -> None:
    """As `align search` does, with one look-up by key."""
    items = IndexedImages.load(folder, thumbnails=True)
    assert items[items.position(f"{ASKED:09d}")].offset_bytes == ASKED


def open_objects(folder: Path) -> None:
    """As it once did."""
    rows = pq.read_table(folder / ITEMS).to_pylist()
    items = [IndexedImage(**{name: row[name] for name in IndexedImage.__dataclass_fields__}) for row in rows]
    positions = {item.key: position for position, item in enumerate(items)}
    assert items[positions[f"{ASKED:09d}"]].offset_bytes == ASKED


def item_row(folder: Path) -> Comparison:
    write_items(folder)
    (ours_s, ours_peak), (theirs_s, theirs_peak) = in_process(open_items, folder), in_process(open_objects, folder)
    return compare(
        "open the table of a million images, find a key", "Python objects and a dict", "images / CPU s",
        items=NUM, ours_s=[ours_s], theirs_s=[theirs_s],
        note=f"peak {ours_peak >> 20:,} against {theirs_peak >> 20:,} MiB; {ours_s:.1f} against {theirs_s:.1f} s",
    )  # fmt: skip


def main() -> int:
    """Returns 1 if a figure is below its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vectors", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    args = parser.parse_args()
    start, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        items = item_row(Path(folder))
        rows, missed = vector_rows(Path(folder))
    about = conditions("a million clustered vectors, 640 wide", ("faiss-cpu", "numpy", "pyarrow"), load)
    bars = f"Bars: recall@{K} {BAR_RECALL}, {BAR_SPEED:.0f}x for single queries, {BAR_MEMORY:.0%} of float32's memory."
    text = f"{table([*rows, items])}\n\n{bars} {about}"
    print(text)
    say(f"benchmark: {time.monotonic() - start:.0f} s; below its bar: {'; '.join(missed) or 'nothing'}")
    if args.write:
        write_section(TITLE, text)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
