"""Whole tensors out of shards, for a checkpoint: from all ranks to the leading one, some megabytes at a time.

Not by torch's `full_tensor`, which sends a message for each tensor, and which can break the heap of ranks that talk
through gloo. Gloo's two threads note the name of the message that they have finished in one string, without a lock.
Only names of more than 15 characters lie on the heap, and `full_tensor` sends such a message: both threads may free the
memory of the name before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from align.training.ranks.buckets import BUCKET_BYTES, buckets
from align.training.ranks.sharding import is_shard, local

if TYPE_CHECKING:  # see `sharding`
    from torch.distributed.tensor import DTensor


def gathered(value: Any) -> Any:
    """The same values with whole tensors instead of shards: on the leading rank's CPU; empty on the other ranks.

    All ranks must call it together. They send a bucket at a time, and the leading device holds no more.

    Args:
        value: dicts, lists and tuples, at any depth, of tensors and plain values.
    """
    whole = (each for some in buckets([*_shards(value)], BUCKET_BYTES) for each in _whole(some))
    return _with(value, whole)


def _shards(value: Any) -> Iterator[DTensor]:
    if is_shard(value):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _shards(item)


def _with(value: Any, whole: Iterator[Tensor]) -> Any:
    """The same values with the next tensor in the place of each shard."""
    if is_shard(value):
        return next(whole)
    if isinstance(value, dict):
        return {name: _with(item, whole) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with(item, whole) for item in value)
    return value


def _whole(shards: Sequence[DTensor]) -> list[Tensor]:
    size, leads = dist.get_world_size(), dist.get_rank() == 0
    counts = [-(-len(shard) // size) * math.prod(shard.shape[1:]) for shard in shards]
    rows = [local(shard.detach()).flatten() for shard in shards]
    own = rows[0].new_zeros(sum(counts))
    for place, row in zip(torch.split(own, counts), rows, strict=True):
        place[: len(row)] = row  # the last ranks may have fewer, or none
    all_ranks = own.new_empty((size if leads else 0, len(own)))
    dist.gather(own, [*all_ranks] if leads else None, dst=0)
    if not leads:
        return [torch.empty(0) for _ in shards]
    parts = zip(torch.split(all_ranks.cpu(), counts, 1), shards, strict=True)
    whole = [part.reshape(-1, *shard.shape[1:])[: len(shard)] for part, shard in parts]
    return [each.permute(0, 3, 1, 2) if each.ndim == 4 else each for each in whole]  # see `sharding._ChannelsLast`
