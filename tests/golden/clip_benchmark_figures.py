"""Writes `clip_benchmark_figures.json`: CLIP_benchmark's recall and accuracies, on embeddings from a seed.

`pip install --no-deps clip-benchmark scikit-learn "numpy<2.4"` beside the project's torch (its `accuracy` fails with
later ones); then, with the project on PYTHONPATH,
`python -m tests.golden.clip_benchmark_figures`.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from tests.golden.embeddings import captioned

FILE = Path(__file__).with_suffix(".json")
#: Classes that images are classified among, of all.
NUM_CLASSES, MASKED = 20, (3, 4, 5, 8, 13, 15, 19)


def retrieval_inputs():
    return captioned(80, 5, width=16, noise=1.5, seed=0)


def class_inputs():
    """Class embeddings, images, and the class of each image: 1 to 20 images a class."""
    classes, images, labels = captioned(NUM_CLASSES, NUM_CLASSES, width=16, noise=1.5, seed=1)
    kept = np.concatenate([np.flatnonzero(labels == one)[: 1 + one] for one in range(NUM_CLASSES)])
    return classes, images[kept], labels[kept]


class Ready:
    """A model whose inputs are embeddings."""

    def encode_image(self, images):
        return images.flatten(1)

    def encode_text(self, texts):
        return texts


def figures():
    """What the package answers, which is imported here."""
    from clip_benchmark.metrics import zeroshot_retrieval
    from clip_benchmark.metrics.zeroshot_classification import accuracy
    from sklearn.metrics import balanced_accuracy_score

    images, texts, image_of_text = retrieval_inputs()
    batches = [
        (
            torch.from_numpy(images[start : start + 16]),
            [list(texts[5 * one : 5 * one + 5]) for one in range(start, start + 16)],
        )
        for start in range(0, len(images), 16)
    ]

    def tokenize(rows):
        return torch.from_numpy(np.stack(rows))

    assert (image_of_text == np.repeat(np.arange(len(images)), 5)).all()
    recall = zeroshot_retrieval.evaluate(Ready(), batches, tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10])

    classes, pictures, labels = class_inputs()
    classified = {}
    for name, mask in (("all", range(NUM_CLASSES)), ("masked", MASKED)):
        kept = np.isin(labels, mask)
        right = torch.from_numpy(np.searchsorted(np.array(mask), labels[kept]))
        logits = torch.from_numpy(pictures[kept]) @ torch.from_numpy(classes[list(mask)]).T
        top1, top5 = accuracy(logits, right, topk=(1, 5))
        mean = balanced_accuracy_score(right, logits.argmax(dim=1))
        classified[name] = {"top1": top1, "top5": top5, "mean_per_class": float(mean)}

    return {"retrieval": recall, "classification": classified}


if __name__ == "__main__":
    found = {"clip_benchmark": version("clip-benchmark"), "torch": version("torch"), **figures()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
