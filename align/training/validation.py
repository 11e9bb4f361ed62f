"""Recall on the validation split while training: a cheap sign of life, not the evaluation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from align.model.dual_encoder import DualEncoder
from align.model.embedder import Embedder
from align.model.tokenizer import TextTokenizer
from align.training.samples import Samples

#: At most so many images of the split are used.
MAX_IMAGES = 500

RECALL_AT = (1, 5, 10)


def validate(model: DualEncoder, tokenizer: TextTokenizer, samples: Samples) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions over the first images of the split and all their texts."""
    chosen = np.arange(min(samples.num_images, MAX_IMAGES), dtype=np.int64)
    texts, owners = [], []
    for sample in chosen:
        for text in samples.texts(int(sample)):
            texts.append(text)
            owners.append(int(sample))
    was_training = model.training
    embedder = Embedder(model, tokenizer)
    images = embedder.embed_pixels(samples.centre_crops(chosen, model.config.image_px))
    similarity = images @ embedder.embed_texts(texts).T
    model.train(was_training)
    relevant = chosen[:, None] == np.asarray(owners)[None, :]
    metrics = {}
    for name, scores, right in (
        ("image_to_text", similarity, relevant),
        ("text_to_image", similarity.T, relevant.T),
    ):
        for k in RECALL_AT:
            metrics[f"val/{name}/recall@{k}"] = recall_at(scores, right, k)
    return metrics


def recall_at(similarity: NDArray[np.float32], relevant: NDArray[np.bool_], k: int) -> float:
    """Share of rows with a relevant column among the k most similar; equal scores rank the irrelevant first."""
    best = np.where(relevant, similarity, -np.inf).max(axis=1)
    ahead = ((similarity >= best[:, None]) & ~relevant).sum(axis=1)
    return float((ahead < k).mean())
