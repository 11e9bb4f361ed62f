"""Weights in shards over the ranks (FSDP2), for towers that a device cannot hold with their gradients and moments.

Each MBConv block, each BERT layer, the text tower's embeddings and what is left of a tower are units: a rank keeps its
rows of their weights, and has the whole of a unit only while it computes with it. The projections and the scalars stay
whole: they are small, and a scalar has no rows.

Gradients are sums over ranks, as without shards (`Ranks.sum_gradients`), where FSDP would take the mean. Each backward
pass adds to the gradient's shard, so that parts of a batch cost a message each, but never a whole gradient.

What it costs: every rank builds the whole model on its CPU first, with the weights of any other run of this seed, so a
machine needs memory for as many copies as it has ranks. Weights travel in float32, whatever `precision` is: what is
computed is then what unsharded towers compute.
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
    """Cuts a model's weights up over the ranks, and moves them to the rank's device, unit by unit.

    Its state dict keeps the names. From then on all ranks have to run the towers together, as often and in the same
    order, in evaluation too.
    """
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch types no such overload
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    image, text = model.vision_model, model.text_model
    units = [*image.encoder.blocks, *text.encoder.layer, text.embeddings, image, text]
    for unit in cast(list[nn.Module], units):  # the inner ones first: the towers take what is left
        part = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # a sum is all that gloo knows
    model.to(ranks.device)


def is_sharded(model: nn.Module) -> bool:
    """Whether any of its parameters lies in shards."""
    return any(isinstance(param, DTensor) for param in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """This rank's rows, in the same memory; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor], owners: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of whole tensors of which each rank has its rows; one message for all of them.

    Args:
        tensors: N local ones, see `local`.
        owners: the parameters that they belong to, which know whether they are sharded.

    Returns:
        (N,), the same on all ranks.
    """
    found = torch.stack(torch._foreach_norm(list(tensors)))
    if not any(isinstance(owner, DTensor) for owner in owners):
        return found
    parts = torch.tensor([isinstance(owner, DTensor) for owner in owners], device=found.device)
    squares = torch.where(parts, found.square(), torch.zeros_like(found))
    dist.all_reduce(squares)
    return torch.where(parts, squares.sqrt(), found)


def gathered(value: Any) -> Any:
    """The same values with whole tensors in place of shards, on the leading rank's CPU; empty ones on the others.

    All ranks have to ask together. One tensor at a time is whole on a device.
    """
    if isinstance(value, DTensor):
        whole = value.full_tensor().detach()
        return whole.cpu() if dist.get_rank() == 0 else whole.new_empty(0, device="cpu")
    if isinstance(value, dict):
        return {name: gathered(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(item) for item in value)
    return value


def placed(value: Any, like: Tensor) -> Any:
    """A whole tensor as another one lies: in shards, or on its device. What is no tensor stays."""
    if not isinstance(value, Tensor):
        return value
    if not isinstance(like, DTensor):
        return value.to(like.device)
    part = distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like).copy_(part)  # a copy: the part may be a view of the whole
