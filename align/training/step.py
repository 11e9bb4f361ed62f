"""The gradients of one step: towers over this rank's share, the loss over the global batch, towers backward.

With `micro_batch` the activations of only a few samples are held at a time, for any batch size (GradCache, Gao et al.
2021): the towers run once without a graph, the loss gives the gradients of all embeddings, and each part runs forward
again and then backward. The result is the same: batch-norm works in groups of 16, the numbers for stochastic depth
belong to the sample, and a forward pass draws and counts nothing, so the second one repeats the first. The temperature
gets its gradient once, from the whole batch.

Gradients are summed over the ranks while the last backward pass of their tower still runs (`ranks.buckets`).

Shapes, as suffixes: B samples of this rank's share, P samples of one part, D width of the embeddings, K blocks of the
image tower, H and W pixels, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from align.config.recipe import Recipe
from align.model.dual_encoder import DualEncoder
from align.model.preprocess import to_pixels
from align.training.batches.batch import Batch, Tokens
from align.training.global_loss import global_loss
from align.training.loss import align_loss, sigmoid_loss
from align.training.ranks.buckets import GradientSums
from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import local, norms
from align.training.words import Words

#: On a CPU the towers process a batch in parts of this many samples, so that activations stay near the cache.
CPU_PAIRS_AT_ONCE = 64
#: On a GPU, where a small part costs little, the texts of a share are divided into so many parts, by length.
GPU_TEXT_PARTS = 4
#: Autocast's type by `precision`; it is off for float32.
_AUTOCAST = {"float32": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: (P,) rows of the share, and the function that encodes them to (P, D).
TowerPart = tuple[Tensor, Callable[[], Tensor]]


class Gradients(NamedTuple):
    """Scalars on the device, for which nobody has waited: the global batch's loss, gradients' norm before clipping."""

    loss: Tensor
    norm: Tensor


def compute_gradients(
    model: DualEncoder, recipe: Recipe, ranks: Ranks, batch: Batch,
    scaling: tuple[GradScaler, Optimizer] | None = None, estimates: Tensor | None = None,
) -> Gradients:  # fmt: skip
    """Sets every parameter's `grad` to the gradient of the global batch's loss, the same on all ranks.

    On a GPU the host waits for nothing here: not for a value, nor for a copy. What is returned may be inf or NaN, see
    `align.training.state`.

    Args:
        model: in training mode.
        recipe: `micro_batch`, precision, label smoothing and clipping.
        batch: this rank's share, on any device.
        scaling: of float16: multiplies the loss, and divides the gradients of the optimiser's parameters at the end.
        estimates: of the global loss, which changes them; None: the loss is another one.
    """
    model.zero_grad(set_to_none=True)
    size = part_size(model, recipe, ranks.device, len(batch.images))
    parts = (
        _image_parts(model, batch, size, ranks.device),
        _text_parts(model, batch.tokens, text_part_size(recipe, size, ranks.device), ranks.device),
    )
    precise = autocast(recipe, ranks.device)
    cached = recipe.micro_batch is not None
    with precise, torch.set_grad_enabled(not cached):
        image_embeds_BD, text_embeds_BD = (_encode(tower) for tower in parts)
    if cached:
        image_embeds_BD.requires_grad_(), text_embeds_BD.requires_grad_()
    if estimates is None:
        loss = _loss(model, recipe, (image_embeds_BD, text_embeds_BD), ranks)
    else:
        assert batch.numbers is not None
        arguments = (model.temperature, _there(batch.numbers, ranks.device), estimates, recipe)
        loss = global_loss(image_embeds_BD, text_embeds_BD, *arguments, peers=ranks)
    image, text, scalars = _finished_in_order(model)
    sums = GradientSums([*image, *text, *scalars] if cached else [*scalars, *text, *image], ranks)
    with sums.last_backward(scalars if cached else [*scalars, *text, *image]):
        scaled = loss if scaling is None else scaling[0].scale(loss)
        scaled.backward()  # type: ignore[no-untyped-call]  # untyped in torch
    if cached:
        for tower, params, embeds_BD in zip(parts, (image, text), (image_embeds_BD, text_embeds_BD), strict=True):
            assert embeds_BD.grad is not None
            if not any(param.requires_grad for param in params):  # a locked tower without a projection
                continue
            for number, (rows_P, encode) in enumerate(tower, 1):
                with precise:
                    embeds_PD = encode()
                with sums.last_backward(params if number == len(tower) else ()):
                    embeds_PD.backward(embeds_BD.grad[_there(rows_P, ranks.device)])  # type: ignore[no-untyped-call]
    sums.finish()
    if scaling is not None:
        scaling[0].unscale_(scaling[1])
    return Gradients(loss.detach(), _clipped(model.parameters(), recipe.clip_norm))


def compute_word_gradients(model: DualEncoder, words: Words, recipe: Recipe, ranks: Ranks, batch: Batch) -> Gradients:
    """As `compute_gradients`, of the words' loss: the mean over the global batch. Only the image tower gets gradients.

    The loss is a sum over samples, so each part runs forward and at once backward. The head of `words` gets its
    gradients, too.
    """
    model.zero_grad(set_to_none=True)
    words.head.zero_grad(set_to_none=True)
    params = [*words.head.parameters(), *reversed([*model.vision_model.parameters()])]
    sums, losses = GradientSums(params, ranks), list[Tensor]()
    size, whole = part_size(model, recipe, ranks.device, len(batch.images)), (batch.images, batch.draws)
    parts = [*zip(*(torch.split(each, size) for each in (*whole, words.targets(batch.drawn))), strict=True)]
    for number, part in enumerate(parts, 1):
        images_PHWC, draws_PK, targets_PV = (_there(each, ranks.device) for each in part)
        with autocast(recipe, ranks.device):
            features_PF = model.vision_model(to_pixels(images_PHWC), draws_PK)
        loss = words.loss(features_PF, targets_PV) / (len(batch.images) * ranks.world_size)
        with sums.last_backward(params if number == len(parts) else ()):
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        losses.append(loss.detach())
    sums.finish()
    return Gradients(ranks.sum(torch.stack(losses).sum()), _clipped(params, recipe.clip_norm))


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The towers' precision: that of the recipe on a GPU, float32 on a CPU."""
    return torch.autocast(
        device.type, _AUTOCAST[recipe.precision],
        enabled=recipe.precision != "float32" and device.type == "cuda",
        cache_enabled=not recipe.shard_weights,  # the cache would keep copies of whole weights
    )  # fmt: skip


def _finished_in_order(model: DualEncoder) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the image tower, of the text tower, and of neither, each as a backward pass finishes them."""
    named = [*model.named_parameters()]
    image, text = ([param for name, param in named if name.startswith(tower)] for tower in ("vision_", "text_"))
    return image[::-1], text[::-1], [param for name, param in named if not name.startswith(("vision_", "text_"))]


def _loss(model: DualEncoder, recipe: Recipe, embeds: tuple[Tensor, Tensor], ranks: Ranks) -> Tensor:
    """The loss of the global batch; with fewer negatives (`negatives_share`) the mean over its groups.

    Of k groups each has every k-th pair of the global batch, whatever the number of ranks: k divides a rank's share.
    """
    image_embeds_BD, text_embeds_BD = embeds
    if recipe.loss == "sigmoid":
        assert model.logit_bias is not None  # `run` requires it
        return sigmoid_loss(image_embeds_BD, text_embeds_BD, model.temperature, model.logit_bias, peers=ranks)
    groups = [slice(first, None, recipe.num_groups) for first in range(recipe.num_groups)]
    embeds_of = ((image_embeds_BD[group], text_embeds_BD[group]) for group in groups)
    losses = [align_loss(*some, model.temperature, recipe.label_smoothing, peers=ranks) for some in embeds_of]
    return torch.stack(losses).mean()


def _clipped(params: Iterable[Tensor], clip_norm: float | None) -> Tensor:
    """Clips the gradients to `clip_norm`, and returns their norm before."""
    owners = [param for param in params if param.grad is not None]
    gradients = [local(param.grad) for param in owners if param.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(norms(gradients, owners))
    if clip_norm is not None:
        torch._foreach_mul_(gradients, (clip_norm / norm.clamp(min=1e-12)).clamp(max=1.0))
    return norm


def part_size(model: DualEncoder, recipe: Recipe, device: torch.device, share: int) -> int:
    """Samples that the towers process at a time: a multiple of the batch-norm group, unless the share is smaller."""
    size = min(recipe.micro_batch or share, CPU_PAIRS_AT_ONCE if device.type == "cpu" else share)
    group = model.config.batch_norm_group
    return max(group, size // group * group)


def text_part_size(recipe: Recipe, size: int, device: torch.device) -> int:
    """Texts of similar length that are encoded at a time, where a part has at most `size` samples."""
    # with sharded weights each part gathers them again, so the texts of a share stay together
    if device.type == "cpu" or recipe.micro_batch is not None or recipe.shard_weights:
        return size
    return max(1, -(-size // GPU_TEXT_PARTS))


def _image_parts(model: DualEncoder, batch: Batch, size: int, device: torch.device) -> list[TowerPart]:
    def encode(images_PHWC: Tensor, draws_PK: Tensor) -> Tensor:
        return model.encode_image(to_pixels(_there(images_PHWC, device)), _there(draws_PK, device))

    whole = (torch.arange(len(batch.images)), batch.images, batch.draws)
    parts = zip(*(torch.split(each, size) for each in whole), strict=True)
    return [(rows_P, partial(encode, images, draws)) for rows_P, images, draws in parts]


def _text_parts(model: DualEncoder, tokens: Tokens, size: int, device: torch.device) -> list[TowerPart]:
    """Texts of similar length share a part, which saves padding."""
    ids_BT, lengths_B = _there(tokens.ids, device), _there(torch.from_numpy(tokens.lengths), device)

    def encode(rows_P: Tensor) -> Tensor:
        longest, rows_P = int(tokens.lengths[rows_P.numpy()].max()), _there(rows_P, device)
        mask_PT = torch.arange(longest, device=device) < lengths_B[rows_P, None]
        return model.encode_text(ids_BT[rows_P, :longest], mask_PT)

    order_B = torch.from_numpy(np.argsort(tokens.lengths, kind="stable"))
    return [(rows_P, partial(encode, rows_P)) for rows_P in torch.split(order_B, size)]


def _encode(parts: Sequence[TowerPart]) -> Tensor:
    """(B, D) in the order of the share."""
    embeds_PD = [encode() for _, encode in parts]
    order_B = torch.cat([rows_P for rows_P, _ in parts])
    return torch.cat(embeds_PD)[_there(torch.argsort(order_B), embeds_PD[0].device)]


def _there(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, without a wait for the copy: out of pageable memory CUDA first waits for its work."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
