"""What a run measures of its model now and then: recall on the validation split, and signs of a collapse.

Recall on the validation split, which all ranks share, is a cheap check of progress, not the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.model.dual_encoder import DualEncoder
from align.model.embedder import Embedder
from align.model.image_tower import estimate_statistics
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer
from align.training.acceleration import as_written
from align.training.batches.samples import SampleSources, SplitSamples
from align.training.ranks.process_group import Ranks
from align.training.state import MetricRow, State
from align.training.step import autocast

#: Batch-norm statistics are estimated from at most this many training images, STATISTICS_AT_ONCE at a time.
STATISTICS_IMAGES, STATISTICS_AT_ONCE = 1024, 64

#: At most this many images of the split are used.
MAX_IMAGES = 500

#: Number of training images on which batch-norm's gap is measured.
_GAP_IMAGES = 64

RECALL_AT = (1, 5, 10)

#: Texts whose answers are kept, and images of an answer.
NUM_ASKED, NUM_FOUND = 10, 5

#: Measures a model on evaluation sets; all ranks call it, and get the same.
Validation = Callable[[DualEncoder, TextTokenizer, Ranks], MetricRow]


def measure(
    state: State, samples: SampleSources, tokenizer: TextTokenizer, ranks: Ranks, validation: Validation | None
) -> MetricRow:
    """The metrics of a validation, the same on all ranks; `state.found` gets what some texts found.

    Batch-norm's running statistics are estimated first, as an exported model has them. With sharded weights each rank
    embeds everything: there every forward pass is one of all ranks. Otherwise they divide it.
    """
    among, model = ranks.alone() if state.sharded else ranks, state.model
    with as_written(), autocast(state.recipe, ranks.device):
        refresh_statistics(model, samples.train, among)
        metrics: MetricRow = {**batch_norm_gap(model, samples.train, ranks.device)}
        if samples.val is not None:
            recalls, state.found[state.step] = validate(model, samples.val, tokenizer, among)
            metrics |= recalls
        if validation is not None:
            metrics |= validation(model, tokenizer, among)
    return metrics


def refresh_statistics(model: DualEncoder, samples: SplitSamples, ranks: Ranks) -> None:
    """Estimates batch-norm's running statistics from centre crops of training images, evenly spread over the split.

    Args:
        model: its statistics are set, on every rank.
        samples: of the training split.
        ranks: those that divide the images among themselves; all of them call this.
    """
    if model.locked == "image":  # its statistics came with its weights
        return
    group = model.config.batch_norm_group
    count = max(min(samples.num_images, STATISTICS_IMAGES) // group * group, min(samples.num_images, group))
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    part = max(group, STATISTICS_AT_ONCE // group * group)
    parts = [chosen[start : start + part] for start in range(0, len(chosen), part)]
    batches = (
        to_pixels(np.stack([*samples.centre_crops(rows, model.config.image_px)])).to(ranks.device)
        for rows in parts[ranks.rank :: ranks.world_size]
    )
    estimate_statistics(model.vision_model, batches, ranks.sum if ranks.world_size > 1 else None)


def effective_rank(embeds_ND: Tensor) -> float:
    """The number of directions that embeddings (N, D) spread over: exp of the entropy of their covariance's spectrum.

    1 where all points are on a line or equal; at most min(N - 1, D). Roy and Vetterli (2007).
    """
    centred_ND = (embeds_ND - embeds_ND.mean(0)).double()
    num, width = centred_ND.shape
    gram = centred_ND.T @ centred_ND if width <= num else centred_ND @ centred_ND.T  # the smaller of (D, D), (N, N)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = float(values.sum())
    if total <= 1e-12 * num:
        return 1.0
    shares = values / total
    shares = shares[shares > 1e-12]
    return float((-(shares * shares.log()).sum()).exp())


def possible_rank(model: DualEncoder, num_images: int) -> int:
    """The largest effective rank that a split's embeddings can have: N images span N - 1 directions, at most D."""
    return min(num_images - 1, MAX_IMAGES - 1, model.config.embed_width)


def validate(
    model: DualEncoder, samples: SplitSamples, tokenizer: TextTokenizer, ranks: Ranks
) -> tuple[dict[str, float], list[list[int]]]:
    """Recall@1, @5 and @10 in both directions over the first images of the split and all their texts.

    Args:
        model: as it would be exported.
        samples: the split.
        tokenizer: of the texts.
        ranks: those that divide the images among themselves; all of them call this.

    Returns:
        The metrics; and for the first text of some images, always the same: the image, then the nearest ones. The same
        on every rank.
    """
    chosen = np.arange(min(samples.num_images, MAX_IMAGES), dtype=np.int64)
    mine = np.array_split(chosen, ranks.world_size)[ranks.rank]
    texts, owners = [], []
    for sample, of in zip(mine.tolist(), samples.texts_of(mine), strict=True):
        texts += of
        owners += [sample] * len(of)
    was_training = model.training
    embedder = Embedder(model, tokenizer)
    shown = (
        embedder.embed_pixels(samples.centre_crops(mine, model.config.image_px)),
        embedder.embed_texts(texts),
        np.array(owners, dtype=np.int64),
    )
    model.train(was_training)
    images, of_texts, owner = (ranks.gather_rows(torch.from_numpy(rows)) for rows in shown)
    similarity = images.numpy() @ of_texts.numpy().T
    relevant = chosen[:, None] == owner.numpy()[None, :]
    metrics = {"val/effective_rank": effective_rank(images)}
    for name, scores, right in (
        ("image_to_text", similarity, relevant),
        ("text_to_image", similarity.T, relevant.T),
    ):
        for k in RECALL_AT:
            metrics[f"val/{name}/recall@{k}"] = recall_at(scores, right, k)
    asked = np.unique(np.linspace(0, len(chosen) - 1, NUM_ASKED).astype(np.int64))
    scores = similarity[:, relevant[asked].argmax(axis=1)]
    nearest = np.argsort(-scores, axis=0, kind="stable")[:NUM_FOUND]
    return metrics, np.vstack([asked, nearest]).T.tolist()


@torch.no_grad()
def batch_norm_gap(model: DualEncoder, samples: SplitSamples, device: torch.device) -> dict[str, float]:
    """Mean of 1 - cosine between the embeddings of training images by batch statistics and by running statistics.

    Large if the running statistics differ from those in training (the gap between train and eval mode). Empty if the
    tower is locked, which is always in eval mode.
    """
    if model.locked == "image":
        return {}
    group = model.config.batch_norm_group
    count = min(samples.num_images, max(group, _GAP_IMAGES // group * group))
    if count > group:
        count -= count % group
    chosen = np.linspace(0, samples.num_images - 1, count).astype(np.int64)
    pixels = to_pixels(np.stack([*samples.centre_crops(chosen, model.config.image_px)])).to(device)
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
