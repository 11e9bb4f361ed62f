"""Sums of gradients in few messages, and whole tensors from shards: what ranks send of a model.

Gradients are summed over the ranks while the backward pass still runs. As soon as all gradients of a bucket (some
megabytes in one piece of memory) are there, they move into it, and its message starts; the rest of the backward pass
hides the time that it takes. From then on the gradients are views of the bucket, so all gradients exist once, and one
bucket twice for a moment. All ranks send their buckets in the same order: that in which a backward pass finishes the
parameters. torch's own way, DDP's reducer, is behind USE_REDUCER until a card has said which one stays.

Shards become whole tensors for a checkpoint, from all ranks to the leading one. Not by torch's `full_tensor`, which can
break the heap: gloo's two threads note the name of the message that they have finished in one string without a lock,
and its name has more than 15 characters, so both may free the memory of the name before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import is_shard, local

_T = TypeVar("_T", bound=Tensor)
#: A bucket is full at this size; a larger parameter has one of its own.
BUCKET_BYTES = 16 << 20
#: Whether DDP's reducer sums gradients instead. Every parameter that is trained must get one.
USE_REDUCER = False


class GradientSums:
    """Replaces gradients by their sums over ranks. Sharded parameters are left out: FSDP sums their gradients.

    A sum, not a mean: each rank has its own rows' share of the gradient. `params` are in the order in which the
    backward pass finishes them, the same on all ranks.
    """

    def __init__(self, params: Sequence[nn.Parameter], ranks: Ranks) -> None:
        self._ranks = ranks
        own = [param for param in params if param.requires_grad and not is_shard(param)]
        self._buckets = buckets(own, BUCKET_BYTES) if ranks.world_size > 1 else []
        self._bucket_of = {param: number for number, bucket in enumerate(self._buckets) for param in bucket}
        self._missing = [len(bucket) for bucket in self._buckets]
        self._messages: list[Any] = []
        self._reducers: list[dist.Reducer] = []

    @contextmanager
    def last_backward(self, params: Sequence[nn.Parameter]) -> Iterator[None]:
        """The block holds the last backward pass of these parameters in this step: what it finishes is sent."""
        own: list[Any] = [param for param in params if param in self._bucket_of]
        if USE_REDUCER and own:
            self._reduce(own)
        handles = [] if USE_REDUCER else [param.register_post_accumulate_grad_hook(self._finished) for param in own]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> None:
        """Sends what is left, such as the buckets of parameters that got no gradient, and waits for all sums."""
        if USE_REDUCER:  # its backward pass has waited; it makes means
            grads = [param.grad for param in self._bucket_of if param.grad is not None]
            assert len(grads) == len(self._bucket_of), "a bucket with a parameter without a gradient is never sent"
            torch._foreach_mul_(grads, self._ranks.world_size)
            return
        while len(self._messages) < len(self._buckets):
            self._send(self._buckets[len(self._messages)])
        for message in filter(None, self._messages):
            message.wait()

    def _reduce(self, params: list[nn.Parameter]) -> None:
        numbers, world = {param: number for number, param in enumerate(params)}, dist.group.WORLD
        assert world is not None
        indices = [[numbers[param] for param in bucket] for bucket in buckets(params, BUCKET_BYTES)]
        self._reducers.append(dist.Reducer(
            [*params], indices, [BUCKET_BYTES] * len(indices), world, [False] * len(params),
            gradient_as_bucket_view=True,
        ))  # fmt: skip
        self._reducers[-1].prepare_for_backward([])

    def _finished(self, param: Tensor) -> None:
        number = self._bucket_of[param]  # type: ignore[index]  # torch hands over the parameter
        self._missing[number] -= 1
        while len(self._messages) < len(self._buckets) and not self._missing[len(self._messages)]:
            self._send(self._buckets[len(self._messages)])

    def _send(self, bucket: Sequence[nn.Parameter]) -> None:
        owners = [param for param in bucket if param.grad is not None]
        if not owners:  # on no rank: they compute the same graph
            self._messages.append(None)
            return
        memory, views = in_one_piece(owners)
        with torch.no_grad():
            torch._foreach_copy_(views, [param.grad for param in owners if param.grad is not None])
        for param, view in zip(owners, views, strict=True):
            param.grad = view
        self._messages.append(self._ranks.start_sum(memory))


def buckets(tensors: Sequence[_T], max_bytes: int) -> list[list[_T]]:
    """The tensors in their order, in lists of one type and at most `max_bytes`, or of one larger tensor."""
    lists, held = list[list[_T]](), 0
    for tensor in tensors:
        if not lists or held + tensor.nbytes > max_bytes or tensor.dtype != lists[-1][0].dtype:
            lists.append([])
            held = 0
        lists[-1].append(tensor)
        held += tensor.nbytes
    return lists


def in_one_piece(like: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Uninitialised memory for tensors of one type without gaps, and a view of it for each, of the same strides."""
    memory = torch.empty(sum(tensor.numel() for tensor in like), dtype=like[0].dtype, device=like[0].device)
    views, start = [], 0
    for tensor in like:
        views.append(memory.as_strided(tensor.shape, tensor.stride(), start))
        start += tensor.numel()
    return memory, views


def gathered(value: Any) -> Any:
    """The same values with whole tensors instead of shards: on the leading rank's CPU; empty on the other ranks.

    All ranks must call it together. `value` has dicts, lists and tuples, at any depth, of tensors and plain values.
    """
    return tree_map(lambda leaf: _whole(leaf) if is_shard(leaf) else leaf, value)


def _whole(shard: Tensor) -> Tensor:
    size, rows = dist.get_world_size(), local(shard.detach())
    own = rows.new_zeros((-(-len(shard) // size), *shard.shape[1:]))
    own[: len(rows)] = rows  # the last ranks may have fewer, or none
    all_ranks = [torch.empty_like(own) for _ in range(size)] if dist.get_rank() == 0 else None
    dist.gather(own, all_ranks, dst=0)
    if all_ranks is None:
        return torch.empty(0)
    whole = torch.cat(all_ranks)[: len(shard)].cpu()
    return whole.permute(0, 3, 1, 2) if whole.ndim == 4 else whole  # see `sharding._ChannelsLast`
