"""Filtered queries over a million images, by `python -m benchmarks.filters`: what words, splits and columns cost.

The images are those of data/sample/ready, 200 times over: real texts, vectors with noise, a price and a colour as the
columns of a catalogue. A query goes the way of `align serve` from its filter to its answer in JSON; only the model is
left out, whose vector is given. No filter comes twice: one is not answered from memory. Words are drawn as often as the
texts have them, so most are frequent.

A process makes the index, and another asks it: seconds of each query, and the peak of resident memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from align.display.console import say
from align.formats.image_index import ImageIndex, IndexFacts, write_index
from align.formats.indexed_images import Vectors32
from align.search.service.answers import SearchQuery
from align.search.service.queries import answer, bounded
from align.search.service.served import Release, Served
from align.services.vector_index import VectorIndex
from benchmarks.measure import conditions
from tests.support.own_process import in_process, peak_bytes

SAMPLE = Path(__file__).parents[1] / "data/sample/ready/index"
NUM, PER_TAR, EXACT_BELOW, NUM_QUERIES = 1_000_000, 10_000, 100_000, 400
NOISE = 0.7
COLOURS = ["red", "green", "blue", "white", "black"]


def _images(num: int) -> Iterator[tuple[pa.Table, Vectors32]]:
    """The sample's images again and again, a tar at a time."""
    sample = ImageIndex.load(SAMPLE, VectorIndex.load)
    items, rng = list(sample.items), np.random.default_rng(0)
    vectors = np.stack([sample.vector(item.key) for item in items])
    addresses = [sample.addresses(item.key) for item in items]
    for start in range(0, num, PER_TAR):
        which = rng.integers(len(items), size=min(PER_TAR, num - start))
        some, found = [items[one] for one in which], [addresses[one] for one in which]
        keys = [f"{number:012d}" for number in range(start, start + len(some))]
        prices = pa.array(np.round(rng.lognormal(3, 1, len(some)), 2))
        colours = pa.array(rng.choice(COLOURS, len(some)).tolist())
        rows = {
            "key": keys, "image_id": [key.zfill(64) for key in keys], "texts": [list(one.texts) for one in some],
            "split": [one.split for one in some], "shard": [f"train/{start // PER_TAR:05d}.tar"] * len(some),
            "offset_bytes": range(len(some)), "size_bytes": [1] * len(some), "thumbnail": [b""] * len(some),
            "keys": [[f"{key}-{place}" for place in range(len(one.keys))] for key, one in zip(keys, some, strict=True)],
            "page_urls": [[one.page_url for one in pairs] for pairs in found],
            "urls": [[one.url for one in pairs] for pairs in found],
            "columns": pa.StructArray.from_arrays([prices, colours], ["price", "colour"]),
        }  # fmt: skip
        noise = rng.standard_normal((len(some), vectors.shape[1]), dtype=np.float32) * NOISE / vectors.shape[1] ** 0.5
        near = vectors[which] + noise
        yield pa.table(rows), np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), np.float32)


def build(folder: Path, num: int) -> None:
    """Writes the index."""
    vectors = partial(VectorIndex.build, num_vectors=num, exact_below=EXACT_BELOW)
    write_index(folder, _images(num), vectors, IndexFacts(model_digest="m", shards_digest="s", thumbnail_px=0))


def queries(index: ImageIndex, number: int) -> Iterator[SearchQuery]:
    """Different filters, of six kinds in turn."""
    rng, seen = np.random.default_rng(1), set[str]()
    while len(seen) < number:
        drawn = (
            index.items[int(place)].texts[0].split() or ["nothing"]
            for place in rng.integers(NUM, size=3) % len(index.items)
        )
        one, two, three = (words[rng.integers(len(words))] for words in drawn)
        price, colour = f"price<={rng.integers(200)}.{rng.integers(100)}", f"colour={rng.choice(COLOURS)}"
        given = [
            {"words": one}, {"words": f"{one} {two}"}, {"words": one, "split": "train"}, {"where": [price]},
            {"words": two, "where": [price, colour]}, {"words": f"{one} {two} {three}"},
        ][len(seen) % 6]  # fmt: skip
        query = SearchQuery.model_validate(given | {"text": "a query", "limit": 24})
        if (name := query.model_dump_json()) not in seen:
            seen.add(name)
            yield query


def ask(folder: Path, results: Path, number: int) -> None:
    """Asks the index; writes the seconds that opening it took, and of each query those on the clock and of CPU."""
    begins = time.perf_counter()
    index = ImageIndex.load(folder, VectorIndex.load)
    served = Served(Release("1" * 64, "sample"), None, index)  # type: ignore[arg-type]  # no query needs a model here
    opened_s, opened_bytes, rng = time.perf_counter() - begins, peak_bytes(), np.random.default_rng(2)
    nothing, seconds = np.zeros((0, index.header.width), np.float32), []
    for query in list(queries(index, number)):
        vector = index.vector(f"{rng.integers(len(index.items)):012d}")[np.newaxis]
        begins, begins_cpu = time.perf_counter(), time.process_time()
        allowed = index.allowed([query.split] if query.split else [], (query.words or "").split(), query.where)
        found = answer(query, served, allowed, 2.0, vector, nothing)
        found.model_copy(update={"hits": bounded(found.hits)}).model_dump_json()
        seconds.append((time.perf_counter() - begins, time.process_time() - begins_cpu))
    np.savez(results, seconds=seconds, opened_s=opened_s, opened_bytes=opened_bytes)


def main() -> int:
    load, num, number = os.getloadavg()[0], int(sys.argv[1]) if sys.argv[1:] else NUM, NUM_QUERIES
    with tempfile.TemporaryDirectory() as name:
        folder, results = Path(name) / "index", Path(name) / "results.npz"
        folder.mkdir()
        say(f"benchmark: {num:,} images are indexed")
        build_s, build_bytes = in_process(build, folder, num)
        disk = sum(path.stat().st_size for path in folder.iterdir())
        say(f"benchmark: {number:,} filters")
        _, peak = in_process(ask, folder, results, number)
        found = np.load(results)
    p50, p99 = (np.quantile(found["seconds"], share, axis=0) for share in (0.5, 0.99))
    rows = [
        (
            "a filtered query, s: p50, p99, longest",
            f"{p50[0]:.3f}, **{p99[0]:.3f}**, {found['seconds'][:, 0].max():.3f}",
        ),
        ("the same, CPU s: p50, p99", f"{p50[1]:.3f}, {p99[1]:.3f}"),
        ("to open it, s; peak memory, MiB", f"{found['opened_s']:.1f}; {int(found['opened_bytes']) >> 20:,}"),
        ("peak memory with all queries, MiB", f"{peak >> 20:,}"),
        ("to make it, CPU s; peak memory, MiB", f"{build_s:.0f}; {build_bytes >> 20:,}"),
        ("on disk, MiB", f"{disk >> 20:,}"),
    ]
    print("| what | |", "|---|--:|", *(f"| {what} | {value} |" for what, value in rows), sep="\n")
    print(conditions(f"\n{num:,} images, {number} different filters", ("pyarrow", "faiss-cpu"), load).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
