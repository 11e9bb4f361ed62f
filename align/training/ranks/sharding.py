"""Sharding of the weights over ranks (FSDP2), for towers too large for one device with gradients and moments.

Each MBConv block, each BERT layer, the text tower's embeddings and the rest of each tower form one unit. A rank keeps
its rows of a unit's weights and holds the whole unit only while computing with it. The projections and the scalars are
not sharded: they are small, and a scalar has no rows.

Gradients are summed over ranks, as without sharding (`GradientSums`); FSDP's default is the mean. Each backward pass
adds to the gradient's shard, so each part of a batch costs one message, but no rank ever holds a whole gradient.

FSDP wants weights whose memory has no other order than their dimensions, and convolutions on GPUs want channels last.
So a convolution keeps its weight as (out, height, width, in), and computes with a view of the usual shape, which
checkpoints have, too.

Cost: every rank first builds the whole model on its CPU, with the leading rank's weights, so a machine needs memory for
one copy per rank. Weights and gradients are sent in float32, so that the result equals that of unsharded towers.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from align.config.recipe import Recipe
from align.model.dual_encoder import DualEncoder
from align.model.library_towers import layers
from align.model.text_tower import TextTower
from align.training.ranks.process_group import Ranks

if TYPE_CHECKING:  # FSDP is a large part of torch: only a run that shards imports it
    from torch.distributed.tensor import DTensor


def shards(recipe: Recipe, ranks: Ranks) -> bool:
    """Whether there is anything to divide: a rank that is alone has all weights anyway."""
    return recipe.shard_weights and ranks.world_size > 1


def shard(model: DualEncoder, ranks: Ranks) -> None:
    """Shards a model's weights over the ranks and moves them to the rank's device, unit by unit.

    All ranks call this with the same weights on their CPUs. The state dict keeps its names. Afterwards all ranks must
    run the towers together: the same number of times and in the same order, in evaluation too.
    """
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            _keep_channels_last(module)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    image, text = model.vision_model, model.text_model
    tables = [text.embeddings] if isinstance(text, TextTower) else []
    for unit in (*layers(image), *layers(text), *tables, image, text):  # inner ones first: a tower takes the rest
        part = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo supports no other reduction
    model.to(ranks.device)


class _ChannelsLast(nn.Module):
    """Of a convolution whose weight is kept as (out, height, width, in)."""

    @property
    def weight(self) -> Tensor:
        """(out, in, height, width), channels last: a view. While it is divided: this rank's rows, as FSDP asks for."""
        kept = self._parameters["weight"]
        assert kept is not None
        return kept if is_shard(kept) else kept.permute(0, 3, 1, 2)


@functools.cache
def _channels_last(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    return type(kind.__name__, (_ChannelsLast, kind), {})


def _keep_channels_last(convolution: nn.Conv2d) -> None:
    kept = convolution.weight.detach().permute(0, 2, 3, 1).contiguous()
    convolution._parameters["weight"] = nn.Parameter(kept, convolution.weight.requires_grad)
    kind: Any = type(convolution)
    convolution.__class__ = _channels_last(kind)  # as FSDP makes its units of modules


def is_shard(tensor: object) -> TypeGuard[DTensor]:
    """Whether this is a rank's part of a sharded tensor. Without FSDP in this process there is none."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether any of its parameters is sharded."""
    return any(is_shard(param) for param in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, in the same memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if is_shard(tensor) else tensor


def norms(tensors: Sequence[Tensor], owners: Sequence[Tensor]) -> Tensor:
    """Computes the Euclidean norms of whole tensors whose rows are spread over the ranks; one message for all.

    Of N `tensors` this rank has the rows (see `local`), and the parameter of each, its owner, says whether it is
    sharded. Returns (N,), the same on all ranks.
    """
    found = [*torch._foreach_norm(list(tensors))]
    if divided := [number for number, owner in enumerate(owners) if is_shard(owner)]:
        squares = torch.stack([found[number] for number in divided]).square()
        dist.all_reduce(squares)
        for number, norm in zip(divided, squares.sqrt().unbind(), strict=True):
            found[number] = norm
    return torch.stack(found)


def distributed_like(whole: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor, sharded and on a device like another one, and in the order of its memory."""
    own = torch.empty_like(like, requires_grad=False)
    if not is_shard(like):
        return own.copy_(whole)
    from torch.distributed.tensor import distribute_tensor

    if whole.ndim == 4:  # see `_ChannelsLast`
        whole = whole.permute(0, 2, 3, 1)
    part = distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return own.copy_(part)
