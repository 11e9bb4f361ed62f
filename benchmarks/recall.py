"""Retrieval beside CLIP_benchmark's.

5,000 images and 25,000 texts, 640 wide, five texts an image, as COCO's test split: recall@1, @5 and @10 in both
directions, from embeddings to figures. Both compute on one thread, in processes of their own that take turns. Memory is
the peak above the embeddings; the whole matrix of similarities has 500 MB. Recalls that differ by more than 0.0001 are
an error.

    python -m benchmarks.recall EMBEDDINGS.npz ours|theirs

is one of these processes; theirs runs in CLIP_benchmark's own environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import Comparison, compare
from tests.support import ROOT
from tests.support.own_process import forget_peak, peak_bytes
from tests.support.peers import build_peers

if TYPE_CHECKING:  # CLIP_benchmark's environment has not all that it imports
    from benchmarks.world import World

NUM_IMAGES, NUM_TEXTS, WIDTH = 5_000, 25_000, 640
NOISE = 6.0  # in lengths of an image: recall@1 of 0.97 and 0.68
WAYS = ("image_to_text", "text_to_image")
CUTS = (1, 5, 10)
REPETITIONS = 3


def run(world: World) -> list[Comparison]:
    python, file = build_peers("peers_evaluation"), world.root / "embeddings.npz"
    write_embeddings(file)
    turns = []
    for _ in range(REPETITIONS):
        turns.append((_asked(sys.executable, file, "ours"), _asked(python, file, "theirs")))
    for ours, theirs in turns:
        apart = max(abs(ours["recalls"][name] - value) for name, value in theirs["recalls"].items())
        if apart > 1e-4:
            raise AssertionError(f"recalls are {apart:.6f} apart")
    peak, theirs_peak = (max(turn[who]["peak"] for turn in turns) for who in (0, 1))
    at_1 = ", ".join(f"{turns[0][0]['recalls'][f'{way}/recall@1']:.3f}" for way in WAYS)
    matrix_bytes = 4 * NUM_IMAGES * NUM_TEXTS
    row = compare(
        f"recall@1, 5, 10, both directions, {NUM_IMAGES:,} x {NUM_TEXTS:,}", "CLIP_benchmark", "queries / CPU s",
        items=NUM_IMAGES + NUM_TEXTS, ours_s=[ours["seconds"] for ours, _ in turns],
        theirs_s=[theirs["seconds"] for _, theirs in turns],
        note=f"peak memory {peak / 1e6:,.0f} against {theirs_peak / 1e6:,.0f} MB, of {matrix_bytes / 1e6:,.0f} MB of "
        f"similarities; recall@1 {at_1}",
    )  # fmt: skip
    return [row]


def write_embeddings(file: Path) -> None:
    """Images, texts, and the image of each text."""
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(NUM_IMAGES), NUM_TEXTS // NUM_IMAGES)
    images = rng.standard_normal((NUM_IMAGES, WIDTH), dtype=np.float32)
    texts = images[image_of_text] + np.float32(NOISE) * rng.standard_normal((NUM_TEXTS, WIDTH), dtype=np.float32)
    for rows in (images, texts):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.savez(file, images=images, texts=texts, image_of_text=image_of_text)


def _asked(python: str | Path, *words: object) -> dict[str, Any]:
    command = [str(python), "-m", "benchmarks.recall", *map(str, words)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env = os.environ | threads | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {done.stderr[-1000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _ours(arrays: dict[str, np.ndarray]) -> Callable[[], dict[str, float]]:
    from align.evaluate.protocols.retrieval import both_ways

    images, texts, image_of_text = (arrays[name] for name in ("images", "texts", "image_of_text"))

    def recalls() -> dict[str, float]:
        order = np.argsort(image_of_text, kind="stable")
        of_image = np.split(order, np.searchsorted(image_of_text[order], np.arange(1, len(images))))
        positives, clusters = (of_image, list(image_of_text[:, np.newaxis])), (range(len(images)), image_of_text)
        ranks = both_ways(images, texts, positives, clusters)
        return {f"{way}/recall@{k}": float(of.hits(k).values.mean()) for way, of in ranks.items() for k in CUTS}

    return recalls


def _theirs(arrays: dict[str, np.ndarray]) -> Callable[[], dict[str, float]]:
    """What `zeroshot_retrieval.evaluate` does once the model has embedded, with its batches of 64: all similarities,
    the matrix of right pairs, and `recall_at_k` for each K.
    """
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    torch.set_num_threads(1)

    def recalls() -> dict[str, float]:
        texts, images = torch.from_numpy(arrays["texts"]), torch.from_numpy(arrays["images"])
        scores = texts @ images.t()
        right = torch.zeros_like(scores, dtype=torch.bool)
        right[torch.arange(len(scores)), torch.from_numpy(arrays["image_of_text"])] = True
        ways = {"text_to_image": (scores, right), "image_to_text": (scores.T, right.T)}
        found = {}
        for way, (one, positives) in ways.items():
            for k in CUTS:
                shares = batchify(recall_at_k, one, positives, 64, "cpu", k=k)
                found[f"{way}/recall@{k}"] = float((shares > 0).float().mean())
        return found

    return recalls


def main() -> None:
    file, who = sys.argv[1:]
    arrays = dict(np.load(Path(file)))
    recalls = _ours(arrays) if who == "ours" else _theirs(arrays)
    forget_peak()
    before, start = peak_bytes(), time.process_time()
    found = recalls()
    print(json.dumps({"seconds": time.process_time() - start, "peak": peak_bytes() - before, "recalls": found}))


if __name__ == "__main__":
    main()
