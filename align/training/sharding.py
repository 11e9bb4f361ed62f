"""Sharding of the weights over the ranks (FSDP2), for towers too large for one device with gradients and moments.

Each MBConv block, each BERT layer, the text tower's embeddings and the rest of each tower form one unit. A rank keeps
its rows of a unit's weights and holds the whole unit only while computing with it. The projections and the scalars are
not sharded: they are small, and a scalar has no rows.

Gradients are summed over ranks, as without sharding (`GradientSums`); FSDP's default is the mean. Each backward pass
adds to the gradient's shard, so each part of a batch costs one message, but no rank ever holds a whole gradient.

Cost: every rank first builds the whole model on its CPU, with the leading rank's weights, so a machine needs memory for
one copy per rank. Weights are sent in float32 at every `precision`, so that the result equals that of unsharded towers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from align.model.dual_encoder import DualEncoder
from align.training.process_group import Ranks


def shard(model: DualEncoder, ranks: Ranks) -> None:
    """Shards a model's weights over the ranks and moves them to the rank's device, unit by unit.

    The state dict keeps its names. Afterwards all ranks must run the towers together: the same number of times and in
    the same order, in evaluation too.
    """
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch types no such overload
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    image, text = model.vision_model, model.text_model
    units = [*image.encoder.blocks, *text.encoder.layer, text.embeddings, image, text]
    for unit in cast(list[nn.Module], units):  # inner units first: a tower takes the remaining parameters
        part = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo supports no other reduction
    model.to(ranks.device)


def is_sharded(model: nn.Module) -> bool:
    """Whether any of its parameters is sharded."""
    return any(isinstance(param, DTensor) for param in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, in the same memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor], owners: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of whole tensors whose rows are spread over the ranks; one message for all.

    Args:
        tensors: N local tensors, see `local`.
        owners: the parameter of each tensor, which says whether it is sharded.

    Returns:
        (N,), the same on all ranks.
    """
    local_norms = torch.stack(torch._foreach_norm(list(tensors)))
    if not any(isinstance(owner, DTensor) for owner in owners):
        return local_norms
    sharded = torch.tensor([isinstance(owner, DTensor) for owner in owners], device=local_norms.device)
    squares = torch.where(sharded, local_norms.square(), torch.zeros_like(local_norms))
    dist.all_reduce(squares)
    return torch.where(sharded, squares.sqrt(), local_norms)


def gathered(value: Any) -> Any:
    """The same values with whole tensors instead of shards: on the leading rank's CPU; empty on the other ranks.

    All ranks must call it together. A device holds one whole tensor at a time.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor().detach()
        return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")
    if isinstance(value, dict):
        return {name: gathered(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(item) for item in value)
    return value


def distributed_like(value: Any, like: Tensor) -> Any:
    """A whole tensor, sharded or moved to a device like another one. Other values are returned as they are."""
    if not isinstance(value, Tensor):
        return value
    if not isinstance(like, DTensor):
        return value.to(like.device)
    part = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like).copy_(part)  # a copy: the part may be a view of the whole
