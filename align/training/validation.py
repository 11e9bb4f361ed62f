"""What a run measures of its model now and then, a cheap check: recall on the validation split, signs of a collapse."""

from __future__ import annotations

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
from align.training.plan import Validation
from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import is_sharded
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


def measure(
    state: State, samples: SampleSources, tokenizer: TextTokenizer, ranks: Ranks, validation: Validation | None
) -> MetricRow:
    """Measures a model, the same on all ranks, after an estimate of batch-norm's statistics; adds to `state.found`.

    With sharded weights each rank embeds everything: there every forward pass is one of all ranks.
    """
    model = state.model
    among = Ranks(0, 1, ranks.device) if is_sharded(model) else ranks
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

    All ranks call this, divide the images among themselves, and have the same statistics.
    """
    if model.locked == "image":  # its statistics came with its weights
        return
    group = model.config.batch_norm_group
    chosen, part = _spread(samples, STATISTICS_IMAGES, group), max(group, STATISTICS_AT_ONCE // group * group)
    parts = [chosen[start : start + part] for start in range(0, len(chosen), part)]
    batches = (_pixels(model, samples, rows).to(ranks.device) for rows in parts[ranks.rank :: ranks.world_size])
    estimate_statistics(model.vision_model, batches, ranks.sum if ranks.world_size > 1 else None)


def _spread(samples: SplitSamples, most: int, group: int) -> NDArray[np.int64]:
    """At most `most` samples, evenly spread over the split: whole groups of batch-norm, if there are so many."""
    count = max(min(samples.num_images, most) // group * group, min(samples.num_images, group))
    return np.linspace(0, samples.num_images - 1, count).astype(np.int64)


def _pixels(model: DualEncoder, samples: SplitSamples, rows: NDArray[np.int64]) -> Tensor:
    return to_pixels(np.stack([*samples.centre_crops(rows, model.config.image_px)]))


def effective_rank(embeds_ND: Tensor) -> float:
    """The number of directions that embeddings (N, D) spread over: exp of the entropy of their covariance's spectrum.

    1 where all points are on a line or equal; at most min(N - 1, D). Roy and Vetterli (2007).
    """
    centred_ND = (embeds_ND - embeds_ND.mean(0)).double()
    num, width = centred_ND.shape
    gram = centred_ND.T @ centred_ND if width <= num else centred_ND @ centred_ND.T  # the smaller of (D, D), (N, N)
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = float(values.sum())
    return float(torch.special.entr(values / total).sum().exp()) if total > 1e-12 * num else 1.0


def possible_rank(model: DualEncoder, num_images: int) -> int:
    """The largest effective rank that a split's embeddings can have: N images span N - 1 directions, at most D."""
    return min(num_images - 1, MAX_IMAGES - 1, model.config.embed_width)


def validate(
    model: DualEncoder, samples: SplitSamples, tokenizer: TextTokenizer, ranks: Ranks
) -> tuple[dict[str, float], list[list[int]]]:
    """Measures recall@1, @5 and @10 in both directions over the first images of the split and all their texts.

    All ranks call this, divide the images among themselves, and get the same: the metrics; and for the first text of
    some images, always the same, the image, then the nearest ones.
    """
    chosen = np.arange(min(samples.num_images, MAX_IMAGES), dtype=np.int64)
    mine = np.array_split(chosen, ranks.world_size)[ranks.rank]
    texts, owners = [], []
    for sample, of in zip(mine.tolist(), samples.texts_of(mine), strict=True):
        texts += of
        owners += [sample] * len(of)
    was_training, embedder = model.training, Embedder(model, tokenizer)
    image_embeds = embedder.embed_pixels(samples.centre_crops(mine, model.config.image_px))
    shown = (image_embeds, embedder.embed_texts(texts), np.array(owners, dtype=np.int64))
    model.train(was_training)
    images, of_texts, owner = (ranks.gather_rows(torch.from_numpy(rows)) for rows in shown)
    similarity = images.numpy() @ of_texts.numpy().T
    relevant = chosen[:, None] == owner.numpy()[None, :]
    metrics = {"val/effective_rank": effective_rank(images)}
    for name, scores, right in (("image_to_text", similarity, relevant), ("text_to_image", similarity.T, relevant.T)):
        for k in RECALL_AT:
            metrics[f"val/{name}/recall@{k}"] = recall_at(scores, right, k)
    asked = np.unique(np.linspace(0, len(chosen) - 1, NUM_ASKED).astype(np.int64))
    scores = similarity[:, relevant[asked].argmax(axis=1)]
    nearest = np.argsort(-scores, axis=0, kind="stable")[:NUM_FOUND]
    return metrics, np.vstack([asked, nearest]).T.tolist()


@torch.no_grad()
def batch_norm_gap(model: DualEncoder, samples: SplitSamples, device: torch.device) -> dict[str, float]:
    """Mean of 1 - cosine between embeddings of training images by batch and by running statistics; not if locked."""
    if model.locked == "image":
        return {}
    pixels = _pixels(model, samples, _spread(samples, _GAP_IMAGES, model.config.batch_norm_group)).to(device)
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
