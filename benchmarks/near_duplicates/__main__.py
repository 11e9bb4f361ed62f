"""Measures rule I5 on the sample: prints the figures of README.md, and draws docs/img/near_duplicates.png.

python -m benchmarks.near_duplicates
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from align.config import load_params
from align.config.filter import FilterConfig
from align.filter.near_duplicates import Embeddings, read_embeddings
from align.filter.network import ImageNetwork
from align.services.vector_index import RangeIndex
from benchmarks.near_duplicates.figure import draw
from benchmarks.near_duplicates.labelled import found_by_embedding, found_by_hash, labelled_pairs
from benchmarks.near_duplicates.pictures import archive_pictures, drawn, evaluation_pictures
from benchmarks.near_duplicates.recall import recall
from tests.support import ROOT

SAMPLE = ROOT / "data" / "sample"
NUM_PLANTED = 200


def main() -> None:
    network = ImageNetwork(None, os.cpu_count() or 1)
    images, _ = archive_pictures(SAMPLE)
    tests = evaluation_pictures(SAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), time.process_time()
        by_embedding = found_by_embedding(images, tests, network, Path(folder))
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - used
        print(f"{len(images):,} training and {len(tests):,} evaluation images: {wall_s:.0f} s, {cpu_s:.0f} s of CPU\n")
        shares(read_embeddings(Path(folder) / "images.arrow"), read_embeddings(Path(folder) / "views.arrow"))
    by_hash = found_by_hash(images, tests)
    matches = by_embedding.keys() | by_hash
    labels = {(pair.image_id, pair.evaluation): pair.same for pair in labelled_pairs()}
    print(f"found {len(matches)} pairs: {len(by_hash)} by hash, {len(by_embedding)} by embedding")
    for label in ("copy", "mirrored", "no"):
        print(f"  {label}: {sum(labels[pair] == label for pair in matches)} of {list(labels.values()).count(label)}")
    wrong = {image_id for image_id, _ in matches} - {pair[0] for pair in matches if labels[pair] != "no"}
    print(f"  {len(wrong)} images of {len(images):,} are dropped wrongly\n")
    draw(labelled_pairs(), by_embedding, images, tests, ROOT / "docs/img/near_duplicates.png")

    planted = {name: tests[name] for name in drawn(tests, NUM_PLANTED)}
    with tempfile.TemporaryDirectory() as folder:
        rows = recall(planted, tests, network, Path(folder))
    print("| kind | edit | hash alone | embedding alone | the rule |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.kind} | {row.edit} | {row.by_hash:.3f} | {row.by_embedding:.3f} | {row.by_rule:.3f} |")


def shares(images: Embeddings, views: Embeddings) -> None:
    """Prints how many of the close pairs (by brute force) lists find, as an index of 100,000 views or more has them."""
    vectors, others = images.vectors.astype(np.float32), views.vectors.astype(np.float32)
    best = np.concatenate([(vectors[at : at + 500] @ others.T).max(axis=1) for at in range(0, len(vectors), 500)])
    with tempfile.TemporaryDirectory() as folder:
        RangeIndex.write(views.vectors, Path(folder) / "lists", all_below=0)
        lists = RangeIndex(Path(folder) / "lists")
        for cut in (load_params().section(FilterConfig).near_duplicate_cosine_above, 0.96, 0.94):
            close, found = set[tuple[int, str]](), set[tuple[int, str]]()
            for start in range(0, len(vectors), 1000):
                block = vectors[start : start + 1000]
                for pairs, (rows, columns) in (
                    (close, np.nonzero(block @ others.T > cut)), (found, lists.above(block, cut)),
                ):  # fmt: skip
                    pairs |= {(start + row, views.names[at]) for row, at in zip(rows, columns, strict=True)}
            print(f"cosine > {cut}: {len(close)} pairs; lists find {len(found & close)}")
    print("closest evaluation image, percentiles 50, 90, 95, 99:", np.percentile(best, [50, 90, 95, 99]).round(3), "\n")


if __name__ == "__main__":
    main()
