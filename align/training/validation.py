"""Recall on the validation split while training: a cheap check of progress, not the evaluation. All ranks share it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from align.model.dual_encoder import DualEncoder
from align.model.embedder import Embedder
from align.model.preprocess import to_pixels
from align.training.batches.phases import Stretch
from align.training.batches.samples import SplitSamples
from align.training.health import effective_rank
from align.training.ranks.process_group import Ranks

#: At most this many images of the split are used.
MAX_IMAGES = 500

#: Number of training images on which batch-norm's gap is measured.
_GAP_IMAGES = 64

RECALL_AT = (1, 5, 10)


def validate(
    model: DualEncoder, samples: SplitSamples, stretch: Stretch, ranks: Ranks, *, spread: bool
) -> dict[str, float]:
    """Recall@1, @5 and @10 in both directions over the first images of the split and all their texts.

    Args:
        model: as it would be exported.
        samples: the split.
        stretch: the sizes that the model is trained at.
        ranks: all of them call this.
        spread: whether each rank embeds its share; otherwise each one embeds all, as sharded weights need it: there
            every forward pass is one of all ranks.

    Returns:
        The same on every rank.
    """
    chosen = np.arange(min(samples.num_images, MAX_IMAGES), dtype=np.int64)
    mine = np.array_split(chosen, ranks.world_size)[ranks.rank] if spread else chosen
    texts, owners = [], []
    for sample, of in zip(mine.tolist(), samples.texts_of(mine), strict=True):
        texts += of
        owners += [sample] * len(of)
    was_training = model.training
    embedder = Embedder(model, stretch.tokenizer)
    shown = (
        embedder.embed_pixels(samples.centre_crops(mine, stretch.image_px)),
        embedder.embed_texts(texts),
        np.array(owners, dtype=np.int64),
    )
    model.train(was_training)
    images, of_texts, owner = (
        ranks.gather_rows(torch.from_numpy(rows)) if spread else torch.from_numpy(rows) for rows in shown
    )
    similarity = images.numpy() @ of_texts.numpy().T
    relevant = chosen[:, None] == owner.numpy()[None, :]
    metrics = {"val/effective_rank": effective_rank(images)}
    for name, scores, right in (
        ("image_to_text", similarity, relevant),
        ("text_to_image", similarity.T, relevant.T),
    ):
        for k in RECALL_AT:
            metrics[f"val/{name}/recall@{k}"] = recall_at(scores, right, k)
    return metrics


@torch.no_grad()
def batch_norm_gap(model: DualEncoder, stretch: Stretch, device: torch.device) -> dict[str, float]:
    """Mean of 1 - cosine between the embeddings of training images by batch statistics and by running statistics.

    Large if the running statistics differ from those in training (the gap between train and eval mode). Empty if the
    tower is locked, which is always in eval mode.
    """
    if model.locked == "image":
        return {}
    group, samples = model.config.batch_norm_group, stretch.samples.train
    count = min(samples.num_images, max(group, _GAP_IMAGES // group * group))
    if count > group:
        count -= count % group
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    pixels = to_pixels(np.stack([*samples.centre_crops(chosen, stretch.image_px)])).to(device)
    was_training = model.training
    by_batch = model.train().encode_image(pixels)
    by_running = model.eval().encode_image(pixels)
    model.train(was_training)
    return {"val/batch_norm_gap": float(1 - (by_batch * by_running).sum(-1).mean())}


def recall_at(similarity: NDArray[np.float32], relevant: NDArray[np.bool_], k: int) -> float:
    """Share of rows with a relevant column among the k most similar; equal scores rank irrelevant columns first."""
    best = np.where(relevant, similarity, -np.inf).max(axis=1)
    ahead = ((similarity >= best[:, None]) & ~relevant).sum(axis=1)
    return float((ahead < k).mean())
