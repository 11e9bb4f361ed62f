"""Classification from features: `python -m benchmarks.classify [--write] [--queries N]`.

* Nearest neighbours at the size of ImageNet: 1.28 million references, 640 wide, float16 in a file that is mapped into
  memory. CPU seconds, and the peak of resident memory, pages of the file included. With fewer queries than ImageNet's
  50,000 the seconds are in proportion, and memory is smaller by 2.6 KB a query.

A figure beyond its bar ends the command with exit code 1. 1.7 GB of disk are needed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from align.console import say
from align.evaluate.protocols.knn import nearest, weighted_vote
from align.evaluate.protocols.labelled import Labelled
from benchmarks.measure import in_process
from benchmarks.page import conditions, write_section

TITLE = "`make bench-classify`"
NUM_REFERENCES, WIDTH, NUM_CLASSES, BLOCK = 1_280_000, 640, 1000, 20_000
#: Length of the noise; a class centre's is 1.
NOISE = 3.0
BAR_BYTES = 4 << 30


def draw(number: int, seed: int) -> Labelled:
    """Classes as clusters, L2-normalised, float16."""
    centres = np.random.default_rng(0).standard_normal((NUM_CLASSES, WIDTH), dtype=np.float32) / np.float32(WIDTH**0.5)
    rng = np.random.default_rng([1, seed])
    labels = rng.integers(0, NUM_CLASSES, number)
    rows = centres[labels] + rng.standard_normal((number, WIDTH), dtype=np.float32) * np.float32(NOISE / WIDTH**0.5)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return Labelled("drawn", rows.astype(np.float16), labels)


def write_references(folder: Path) -> None:
    """`references.npy` and `labels.npy`."""
    features = open_memmap(folder / "references.npy", "w+", dtype=np.float16, shape=(NUM_REFERENCES, WIDTH))
    labels = np.zeros(NUM_REFERENCES, dtype=np.int64)
    for start in range(0, NUM_REFERENCES, BLOCK):
        part = draw(BLOCK, 1 + start)
        features[start : start + BLOCK], labels[start : start + BLOCK] = part.features, part.labels
    features.flush()
    np.save(folder / "labels.npy", labels)


def ask(folder: Path, protocol: str, num_queries: int) -> None:
    """In a process of its own, for its peak memory. Leaves the accuracy in a file."""
    mapped = np.load(folder / "references.npy", mmap_mode="r")
    references = Labelled("references", mapped, np.load(folder / "labels.npy"))
    queries = draw(num_queries, 0)
    answers = (nearest if protocol == "nearest" else weighted_vote)(queries, references)
    (folder / protocol).write_text(str(float(np.mean(answers == queries.labels))))


def neighbours(num_queries: int) -> tuple[list[str], list[str]]:
    """Lines of a table in Markdown, and what is beyond its bar."""
    lines, missed = ["| protocol | CPU s | peak memory, MB | accuracy |", "|---|--:|--:|--:|"], []
    with tempfile.TemporaryDirectory(prefix="align-bench-") as name:
        folder = Path(name)
        say("benchmark: writing references")
        in_process(write_references, folder)
        for protocol, title in (("nearest", "1-NN"), ("vote", "200-NN, weighted")):
            spent, peak = in_process(ask, folder, protocol, num_queries)
            lines.append(f"| {title} | {spent:,.0f} | {peak / 1e6:,.0f} | {(folder / protocol).read_text():.5} |")
            say(f"benchmark: {lines[-1]}")
            if peak > BAR_BYTES:
                missed.append(f"{title}: peak {peak / 1e9:.1f} GB")
    return lines, missed


def main() -> int:
    """Returns 1 if a figure is beyond its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classify", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/README.md")
    parser.add_argument("--queries", type=int, default=50_000, help="of kNN (default: ImageNet's 50,000)")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    lines, missed = neighbours(args.queries)
    about = conditions(f"{args.queries:,} queries, {NUM_REFERENCES:,} references, {WIDTH} wide", ("numpy",), load)
    text = "\n".join([*lines, "", f"Bar: {BAR_BYTES >> 30} GiB. {about}"])
    print(text)
    say(f"benchmark: beyond its bar: {'; '.join(missed) or 'nothing'}")
    if args.write:
        write_section(TITLE, text)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
