"""Evaluation: `python -m benchmarks.evaluate [--write] [--repetitions N]`.

Embedding a set beside the bare forward pass (see `benchmarks.embedding`), and retrieval beside CLIP_benchmark's.

5,000 images and 25,000 texts, 640 wide, five texts an image, as COCO's test split: recall@1, @5 and @10 in both
directions, from embeddings to figures. Both compute on one thread, in processes of their own that take turns. Memory is
the peak above the embeddings; the whole matrix of similarities has 500 MB. CLIP_benchmark's peak is that of 256 queries
in each direction, which need as much as all.

A figure below its bar, or recalls that differ by more than 0.0001, end the command with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from align.display.console import say
from align.evaluate.protocols.retrieval import both_ways
from align.formats.query_ranks import CUTS
from benchmarks import embedding
from benchmarks.measure import compare
from benchmarks.page import conditions, table, write_section
from benchmarks.peak import forget_peak, peak_bytes
from benchmarks.peers import build_peers, version_of
from tests.support import ROOT

TITLE = "`make bench-evaluate`"
PEERS = "peers_classify"
NUM_IMAGES, NUM_TEXTS, WIDTH = 5_000, 25_000, 640
NOISE = 6.0  # in lengths of an image: recall@1 of 0.97 and 0.68
WAYS = ("image_to_text", "text_to_image")
BAR_SPEED, BAR_MEMORY = 5.0, 0.1
MATRIX_BYTES = 4 * NUM_IMAGES * NUM_TEXTS


def write_embeddings(file: Path) -> None:
    """Images, texts, and the image of each text."""
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(NUM_IMAGES), NUM_TEXTS // NUM_IMAGES)
    images = rng.standard_normal((NUM_IMAGES, WIDTH), dtype=np.float32)
    texts = images[image_of_text] + np.float32(NOISE) * rng.standard_normal((NUM_TEXTS, WIDTH), dtype=np.float32)
    for rows in (images, texts):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(file, images=images, texts=texts, image_of_text=image_of_text)


def here(file: Path) -> None:
    """Prints what `clip_benchmark_recall` prints."""
    arrays = dict(np.load(file))
    forget_peak()
    before, start = peak_bytes(), time.process_time()
    images, texts, image_of_text = (arrays[name] for name in ("images", "texts", "image_of_text"))
    order = np.argsort(image_of_text, kind="stable")
    of_image = np.split(order, np.searchsorted(image_of_text[order], np.arange(1, len(images))))
    ranks = both_ways(
        images, texts, (of_image, list(image_of_text[:, np.newaxis])), (range(len(images)), image_of_text)
    )
    recalls = {f"{way}/recall@{k}": float(of.hits(k).values.mean()) for way, of in ranks.items() for k in CUTS}
    spent, peak = time.process_time() - start, peak_bytes() - before
    print(json.dumps({"seconds": spent, "peak": peak, "recalls": recalls}))


def _asked(command: list[str]) -> dict[str, Any]:
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env = os.environ | threads | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(repetitions: int) -> tuple[str, list[str]]:
    """A table in Markdown, and what is below its bar."""
    peer = [str(build_peers(PEERS)), "-m", "benchmarks.clip_benchmark_recall"]
    with tempfile.TemporaryDirectory(prefix="align-bench-") as folder:
        file = Path(folder) / "embeddings.npz"
        write_embeddings(file)
        turns = []
        for _ in range(repetitions):
            ours = _asked([sys.executable, "-m", "benchmarks.evaluate", "--here", str(file)])
            turns.append((ours, _asked([*peer, str(file), "0"])))
        theirs_peak = _asked([*peer, str(file), "256"])["peak"]
    peak = max(ours["peak"] for ours, _ in turns)
    at_1 = ", ".join(f"{turns[0][0]['recalls'][f'{way}/recall@1']:.3f}" for way in WAYS)
    row = compare(
        f"recall@1, 5, 10, both directions, {NUM_IMAGES:,} x {NUM_TEXTS:,}", "CLIP_benchmark", "queries / CPU s",
        items=NUM_IMAGES + NUM_TEXTS, ours_s=[ours["seconds"] for ours, _ in turns],
        theirs_s=[theirs["seconds"] for _, theirs in turns],
        note=f"peak memory {peak / 1e6:,.0f} against {theirs_peak / 1e6:,.0f} MB, of {MATRIX_BYTES / 1e6:,.0f} MB of "
        f"similarities; recall@1 {at_1}",
    )  # fmt: skip
    missed = [f"{row.ratio:.1f}x, not {BAR_SPEED:.0f}x"] if row.ratio < BAR_SPEED else []
    if peak > BAR_MEMORY * MATRIX_BYTES:
        missed.append(f"peak memory {peak / MATRIX_BYTES:.0%} of the matrix, not {BAR_MEMORY:.0%}")
    for ours, theirs in turns:
        apart = max(abs(ours["recalls"][name] - value) for name, value in theirs["recalls"].items())
        if apart > 1e-4:
            missed.append(f"recalls are {apart:.6f} apart")
    embedded = embedding.rows(repetitions)
    missed += [f"{of.what}: {of.ratio:.2f}x, not {embedding.BAR}x" for of in embedded if of.ratio < embedding.BAR]
    return table([row, *embedded]), missed


def main() -> int:
    """Returns 1 if a figure is below its bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluate", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--here", metavar="EMBEDDINGS", help="our retrieval alone, as JSON")
    args = parser.parse_args()
    if args.here:
        here(Path(args.here))
        return 0
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows, missed = measure(args.repetitions)
    about = conditions(
        "recall in CPU seconds of single processes, one thread each; embedding by the clock", ("numpy",), load
    )
    text = (
        f"{rows}\n\nBars: {BAR_SPEED:.0f}x, {BAR_MEMORY:.0%} of the matrix, equal recalls; embedding {embedding.BAR}x. "
        f"CLIP_benchmark {version_of('clip-benchmark', PEERS)}, torch {version_of('torch', PEERS)}. {about}"
    )
    print(text)
    say(f"benchmark: below its bar: {'; '.join(missed) or 'nothing'}")
    if args.write:
        write_section(TITLE, text)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
