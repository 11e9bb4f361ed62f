"""Many tensors in few messages: a bucket of some megabytes is one piece of memory and one message.

Gradients are summed over the ranks while the backward pass still runs. As soon as all gradients of a bucket are there,
they move into it, and the message starts; the rest of the backward pass hides the time that it takes. From then on the
gradients are views of the bucket, so all gradients exist once, and one bucket twice for a moment. All ranks send their
buckets in the same order: that in which a backward pass finishes the parameters. torch's own way, DDP's reducer, is
behind USE_REDUCER until a card has said which one stays.

Shards become whole tensors for a checkpoint, from all ranks to the leading one. Not by torch's `full_tensor`, which
sends a message for each tensor, and which can break the heap of ranks that talk through gloo. Gloo's two threads note
the name of the message that they have finished in one string, without a lock. Only names of more than 15 characters lie
on the heap, and `full_tensor` sends such a message: both threads may free the memory of the name before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import is_shard, local

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


_T = TypeVar("_T", bound=Tensor)

#: A bucket is full at this size; a larger parameter has one of its own.
BUCKET_BYTES = 16 << 20

#: Whether DDP's reducer sums gradients instead. Every parameter that is trained must get one.
USE_REDUCER = False


class GradientSums:
    """Replaces gradients by their sums over ranks. Sharded parameters are left out: FSDP sums their gradients.

    A sum, not a mean: the loss is that of the global batch, and each rank has its own rows' share of the gradient.

    Args:
        params: in the order in which the backward pass finishes them, the same on all ranks.
        ranks: the other processes; where there are none, nothing is done.
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
        if USE_REDUCER:
            self._reduce([param for param in params if param in self._bucket_of])
            yield
            return
        handles = [
            param.register_post_accumulate_grad_hook(self._finished)  # type: ignore[no-untyped-call]  # untyped in torch
            for param in params
            if param in self._bucket_of
        ]
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
        for message in self._messages:
            if message is not None:
                message.wait()

    def _reduce(self, params: list[nn.Parameter]) -> None:
        if not params:
            return
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
    lists: list[list[_T]] = []
    held = 0
    for tensor in tensors:
        if not lists or held + tensor.nbytes > max_bytes or tensor.dtype != lists[-1][0].dtype:
            lists.append([])
            held = 0
        lists[-1].append(tensor)
        held += tensor.nbytes
    return lists


def in_one_piece(like: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Uninitialised memory for tensors of one type without gaps, and a view of it for each, of the same strides.

    Equal strides keep torch's operations on lists of tensors in few kernels.
    """
    memory = torch.empty(sum(tensor.numel() for tensor in like), dtype=like[0].dtype, device=like[0].device)
    views, start = [], 0
    for tensor in like:
        views.append(memory.as_strided(tensor.shape, tensor.stride(), start))
        start += tensor.numel()
    return memory, views


def gathered(value: Any) -> Any:
    """The same values with whole tensors instead of shards: on the leading rank's CPU; empty on the other ranks.

    All ranks must call it together. They send a bucket at a time, and the leading device holds no more.

    Args:
        value: dicts, lists and tuples, at any depth, of tensors and plain values.
    """
    leaves, tree = tree_flatten(value)
    whole = (each for some in buckets([*filter(is_shard, leaves)], BUCKET_BYTES) for each in _whole(some))
    return tree_unflatten([next(whole) if is_shard(leaf) else leaf for leaf in leaves], tree)


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
