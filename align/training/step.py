"""The gradients of one step: towers over this rank's share, the loss over the global batch, towers backward.

With `micro_batch` the activations of a few samples are held at a time, however large the batch is (GradCache, Gao et
al. 2021): the towers run once without a graph, the loss gives the gradients of all embeddings, and each part runs again
to take them further back. Nothing else differs: batch-norm works in groups of 16, stochastic depth's numbers belong to
the sample, and nothing random or counted happens in a forward pass, so the second one repeats the first, and the
temperature gets its gradient once, from the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from align.config.recipe import Recipe
from align.errors import NonFiniteLossError
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.model.tokenizer import TextTokenizer, pad
from align.training.loader import Batch
from align.training.loss import align_loss, sigmoid_loss
from align.training.process_group import Ranks
from align.training.sharding import local, norms

#: On a CPU the towers work through a batch in parts of this many samples: their activations stay near the cache.
CPU_PART = 64

#: Autocast's type by `precision`; what float32 has there is not looked at.
_AUTOCAST = {"float32": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: Rows of the share, and what encodes them: (rows,) -> (rows, D).
Part = tuple[Tensor, Callable[[], Tensor]]


class Gradients(NamedTuple):
    """What is known of a step's gradients: the global batch's loss, and their norm before any clipping.

    The norm is inf or NaN where they overflowed.
    """

    loss: float
    norm: float


class Interrupted(Exception):
    """The step was left between two parts; no parameter has changed."""


def compute_gradients(
    model: DualEncoder,
    recipe: Recipe,
    ranks: Ranks,
    tokenizer: TextTokenizer,
    batch: Batch,
    stop: Callable[[], bool] = lambda: False,
    loss_scale: float = 1.0,
) -> Gradients:
    """Leaves in every parameter's `grad` the gradient of the global batch's loss, the same on all ranks.

    Args:
        model: in training mode.
        recipe: `micro_batch`, precision, label smoothing and clipping.
        ranks: the other processes.
        tokenizer: of the texts.
        batch: this rank's share.
        stop: asked between two parts where `micro_batch` makes parts; the same answer on all ranks.
        loss_scale: gradients are this many times as large on their way back, and no larger in the end.

    Returns:
        The loss, and the norm of the gradients, which are clipped where `clip_norm` says so.

    Raises:
        NonFiniteLossError: it is inf or NaN; the message says what to change.
        Interrupted: `stop` said so.
    """
    model.zero_grad(set_to_none=True)
    size = part_size(model, recipe, ranks.device, len(batch.texts))
    parts = (
        _image_parts(model, batch.images, batch.draws, size, ranks.device),
        _text_parts(model, tokenizer, batch.texts, size, ranks.device),
    )
    mixed = recipe.precision != "float32" and ranks.device.type == "cuda"
    precise = torch.autocast(
        ranks.device.type, _AUTOCAST[recipe.precision], enabled=mixed,
        cache_enabled=not recipe.shard_weights,  # it would keep a copy of whole weights
    )  # fmt: skip
    cached = recipe.micro_batch is not None
    with precise, torch.set_grad_enabled(not cached):
        embeds = [_encode(some, stop if cached else None) for some in parts]
    if cached:
        embeds = [tensor.requires_grad_() for tensor in embeds]
    loss = _loss(model, recipe, embeds[0], embeds[1], ranks)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteLossError(f"the loss is {value}")
    (loss * loss_scale).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if cached:
        for some, tensor in zip(parts, embeds, strict=True):
            assert tensor.grad is not None
            for rows, encode in some:
                _check(stop)
                with precise:
                    again = encode()
                again.backward(tensor.grad[rows])  # type: ignore[no-untyped-call]  # torch leaves it untyped
    ranks.sum_gradients(model)
    return Gradients(value, _finish(model, loss_scale, recipe.clip_norm))


def _loss(model: DualEncoder, recipe: Recipe, images: Tensor, texts: Tensor, ranks: Ranks) -> Tensor:
    if recipe.loss == "align":
        return align_loss(images, texts, model.temperature, recipe.label_smoothing, peers=ranks)
    assert model.logit_bias is not None  # `run` has asked for it
    return sigmoid_loss(images, texts, model.temperature, model.logit_bias, peers=ranks)


def _finish(model: DualEncoder, loss_scale: float, most: float | None) -> float:
    """Takes the scale out of the gradients; the norm of all of them, which are then cut to `most` if it is above."""
    owners = [param for param in model.parameters() if param.grad is not None]
    gradients = [local(param.grad) for param in owners if param.grad is not None]
    if loss_scale != 1.0:
        torch._foreach_mul_(gradients, 1.0 / loss_scale)
    norm = torch.linalg.vector_norm(norms(gradients, owners))
    if most is not None:
        torch._foreach_mul_(gradients, (most / norm.clamp(min=1e-12)).clamp(max=1.0))
    return float(norm)


def part_size(model: DualEncoder, recipe: Recipe, device: torch.device, share: int) -> int:
    """Samples that the towers see at a time: a multiple of the batch-norm group, unless the share is smaller."""
    if model.config.whole_batch:
        return share
    size = min(recipe.micro_batch or share, CPU_PART if device.type == "cpu" else share)
    group = model.config.batch_norm_group
    return max(group, size // group * group)


def _image_parts(model: DualEncoder, images: Tensor, draws: Tensor, size: int, device: torch.device) -> list[Part]:
    def encode(rows: slice) -> Tensor:
        return model.encode_image(to_pixels(images[rows].to(device)), draws[rows].to(device))

    parts = [slice(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    return [(torch.arange(rows.start, rows.stop), _bound(encode, rows)) for rows in parts]


def _text_parts(
    model: DualEncoder, tokenizer: TextTokenizer, texts: list[str], size: int, device: torch.device
) -> list[Part]:
    """Texts of like length go together, so that little padding is computed; on a GPU larger parts cost less."""
    ids = tokenizer.ids(texts)

    def encode(rows: Sequence[int]) -> Tensor:
        input_ids, mask = pad([ids[row] for row in rows], tokenizer.pad_id)
        return model.encode_text(input_ids.to(device), mask.to(device))

    order = np.argsort([len(sequence) for sequence in ids], kind="stable")
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [(torch.from_numpy(rows), _bound(encode, rows.tolist())) for rows in parts]


def _bound(encode: Callable[[Any], Tensor], rows: Any) -> Callable[[], Tensor]:
    return lambda: encode(rows)


def _encode(parts: Sequence[Part], stop: Callable[[], bool] | None) -> Tensor:
    """(B, D) in the order of the share."""
    embeds = []
    for _, encode in parts:
        if stop is not None:
            _check(stop)
        embeds.append(encode())
    order = torch.cat([rows for rows, _ in parts])
    return torch.cat(embeds)[torch.argsort(order).to(embeds[0].device)]


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise Interrupted
