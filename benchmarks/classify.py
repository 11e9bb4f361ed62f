"""Classification from features: `python -m benchmarks.classify [--write] [--only knn|probe] [--queries N]`.

* Nearest neighbours at the size of ImageNet: 1.28 million references, 640 wide, float16 in a file that is mapped into
  memory. CPU seconds, and the peak of resident memory, pages of the file included. Seconds are in proportion to the
  queries; each takes 5 KB of memory.
* The linear probe beside CLIP_benchmark's: 10,000 pictures, 640 wide, of 100 classes, a fifth of them for validation;
  each class has three clusters of unequal weight, and a tenth of the labels is wrong. Both with the same seeds, one
  thread each, in processes of their own that take turns. Accuracy is equal if the means differ by less than twice the
  standard error that the seeds give.

A figure beyond its bar ends the command with exit code 1. 1.7 GB of disk are needed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np
from numpy.lib.format import open_memmap

from align.display.console import say
from align.evaluate.protocols.knn import nearest, weighted_vote
from align.evaluate.protocols.labelled import Labelled
from align.evaluate.protocols.linear import linear_probe
from benchmarks.measure import in_process
from benchmarks.page import conditions, write_section
from benchmarks.peers import build_peers, version_of
from tests.support import ROOT

TITLES = {"knn": "`make bench-classify`: kNN", "probe": "`make bench-classify`: linear probe"}
NUM_REFERENCES, WIDTH, NUM_CLASSES, BLOCK = 1_280_000, 640, 1000, 20_000
#: Length of the noise; a class centre's is 1.
NOISE = 3.0
BAR_BYTES = 4 << 30
PROBE_CLASSES, PEERS = 100, "peers_classify"


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
    said = (
        f"{num_queries:,} queries, {NUM_REFERENCES:,} references, {WIDTH} wide, float16 in a mapped file of "
        f"{NUM_REFERENCES * WIDTH * 2 / 1e6:,.0f} MB, whose pages count. ImageNet's 50,000 queries take "
        f"{50_000 / num_queries:g} times as long, and 5 KB of memory more each. Bar: {BAR_BYTES >> 30} GiB."
    )
    return [*lines, "", said], missed


def write_features(file: Path) -> None:
    """Splits `train`, `val` and `test`, float32, with labels."""
    rng = np.random.default_rng(0)
    shape = (PROBE_CLASSES, 3, WIDTH)
    kinds = rng.standard_normal((PROBE_CLASSES, 1, WIDTH)) + rng.standard_normal(shape) * 0.7
    directions = rng.standard_normal((40, WIDTH))  # in which pictures of all classes differ
    arrays = {}
    for split, number in (("train", 8000), ("val", 2000), ("test", 5000)):
        labels = rng.integers(0, PROBE_CLASSES, number)
        rows = kinds[labels, rng.choice(3, number, p=[0.6, 0.3, 0.1])]
        rows = rows + rng.standard_normal((number, 40)) @ directions * 0.4 + rng.standard_normal((number, WIDTH)) * 6.0
        arrays[split] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        wrong = rng.random(number) < 0.1
        arrays[f"{split}_labels"] = np.where(wrong, rng.integers(0, PROBE_CLASSES, number), labels)
    np.savez(file, **arrays)


def probe_here(file: Path, seed: int) -> None:
    """Prints what `clip_benchmark_probe` prints."""
    arrays = np.load(file)
    train, val, test = (Labelled(name, arrays[name], arrays[f"{name}_labels"]) for name in ("train", "val", "test"))
    start = time.process_time()
    found = linear_probe(train, val, test, PROBE_CLASSES, seed=seed)
    spent = time.process_time() - start
    right = float(np.mean(found.answers == test.labels))
    print(json.dumps({"seconds": spent, "accuracy": right, "decay": found.decay}))


def _asked(who: str, command: list[str], file: Path, seed: int) -> dict[str, float]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*command, str(file), str(seed)], env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {done.stderr[-1000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    say(f"benchmark: probe, seed {seed}, {who}: {found}")
    return found


def probes(num_seeds: int) -> tuple[list[str], list[str]]:
    """Lines of a table in Markdown, and what is beyond its bar."""
    commands = {
        "`linear_probe`": [sys.executable, "-m", "benchmarks.classify", "--probe"],
        "CLIP_benchmark": [str(build_peers(PEERS)), "-m", "benchmarks.clip_benchmark_probe"],
    }
    with tempfile.TemporaryDirectory(prefix="align-bench-") as name:
        file = Path(name) / "features.npz"
        write_features(file)
        turns = [
            {who: _asked(who, command, file, seed) for who, command in commands.items()} for seed in range(num_seeds)
        ]
    lines = [
        f"| probe, 10,000 x 640, {num_seeds} seeds | CPU s, median | accuracy, mean | deviation | weight decays |",
        "|---|--:|--:|--:|---|",
    ]
    right = {who: [turn[who]["accuracy"] for turn in turns] for who in commands}
    for who in commands:
        seconds, decays = median(turn[who]["seconds"] for turn in turns), sorted({turn[who]["decay"] for turn in turns})
        said = ", ".join(f"{decay:.2g}" for decay in decays)
        lines.append(f"| {who} | {seconds:,.1f} | {mean(right[who]):.4f} | {stdev(right[who]):.4f} | {said} |")
    ours, theirs = commands
    ratios = [turn[theirs]["seconds"] / turn[ours]["seconds"] for turn in turns]
    apart = abs(mean(right[ours]) - mean(right[theirs]))
    allowed = 2 * math.sqrt(sum(stdev(rows) ** 2 / len(rows) for rows in right.values()))
    missed = [f"probe: accuracies are {apart:.4f} apart, not {allowed:.4f}"] if apart > allowed else []
    if median(ratios) < 1:
        missed.append(f"probe: {median(ratios):.2f}x")
    said = (
        f"Ratio: **{median(ratios):.1f}** [{min(ratios):.1f}, {max(ratios):.1f}]; bar: 1. Means are {apart:.4f} apart; "
        f"bar: {allowed:.4f}, twice the standard error that the seeds give. CLIP_benchmark "
        f"{version_of('clip-benchmark', PEERS)} on the CPU, in float32, its loaders without workers."
    )
    return [*lines, "", said], missed


def main() -> int:
    """Returns 1 if a figure is beyond its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classify", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/README.md")
    parser.add_argument("--queries", type=int, default=50_000, help="of kNN (default: ImageNet's 50,000)")
    parser.add_argument("--seeds", type=int, default=5, help="of the probe, at least 2 (default: 5)")
    parser.add_argument("--only", choices=("knn", "probe"), help="one of the two (default: both)")
    parser.add_argument("--probe", nargs=2, metavar=("FEATURES", "SEED"), help="our linear probe alone, as JSON")
    args = parser.parse_args()
    if args.probe:
        probe_here(Path(args.probe[0]), int(args.probe[1]))
        return 0
    parts: dict[str, Callable[[], tuple[list[str], list[str]]]] = {
        "knn": partial(neighbours, args.queries), "probe": partial(probes, args.seeds)
    }  # fmt: skip
    beyond = []
    for name in parts if args.only is None else (args.only,):
        load = os.getloadavg()[0]
        lines, missed = parts[name]()
        beyond += missed
        about = conditions("CPU seconds of single processes, one thread each", ("numpy", "torch"), load)
        text = "\n".join([*lines, "", about])
        print(text)
        if args.write:
            write_section(TITLES[name], text)
    say(f"benchmark: beyond its bar: {'; '.join(beyond) or 'nothing'}")
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
