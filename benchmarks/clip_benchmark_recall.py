"""CLIP_benchmark's recall over embeddings of a file, in its own environment: `... EMBEDDINGS.npz NUM_QUERIES`.

It does what the package's `zeroshot_retrieval.evaluate` does once the model has embedded, with its batches of 64: all
similarities, the matrix of right pairs, and `recall_at_k` for each K. With NUM_QUERIES above 0 only so many queries are
asked in each direction, which needs as much memory. Prints one line of JSON: CPU seconds, peak bytes above the
embeddings, and the recalls.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from clip_benchmark.metrics.zeroshot_retrieval import (  # type: ignore[import-not-found,unused-ignore]  # of the peers
    batchify,
    recall_at_k,
)

from benchmarks.peak import forget_peak, peak_bytes

BATCH_SIZE = 64
CUTS = (1, 5, 10)


def recalls(arrays: dict[str, np.ndarray], num_queries: int | None) -> dict[str, float]:
    """Its six figures."""
    texts, images = torch.from_numpy(arrays["texts"]), torch.from_numpy(arrays["images"])
    scores = texts @ images.t()
    positive_pairs = torch.zeros_like(scores, dtype=torch.bool)
    positive_pairs[torch.arange(len(scores)), torch.from_numpy(arrays["image_of_text"])] = True
    found = {}
    for k in CUTS:
        for way, one, right in (
            ("text_to_image", scores, positive_pairs), ("image_to_text", scores.T, positive_pairs.T)
        ):  # fmt: skip
            shares = batchify(recall_at_k, one[:num_queries], right[:num_queries], BATCH_SIZE, "cpu", k=k)
            found[f"{way}/recall@{k}"] = float((shares > 0).float().mean())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = dict(np.load(Path(sys.argv[1])))
    forget_peak()
    before, start = peak_bytes(), time.process_time()
    answers = recalls(loaded, int(sys.argv[2]) or None)
    sys.stdout.write(
        json.dumps({"seconds": time.process_time() - start, "peak": peak_bytes() - before, "recalls": answers}) + "\n"
    )
