"""Gradients summed over the ranks in buckets, while the backward pass still runs.

A bucket is one piece of memory and one message. As soon as all its gradients are there, they move into it, and the
message starts; the rest of the backward pass hides the time that it takes. From then on the gradients are views of the
bucket, so all gradients exist once, and one bucket twice for a moment.

All ranks send their buckets in the same order: that in which a backward pass finishes the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from align.training.ranks.process_group import Ranks
from align.training.ranks.sharding import is_shard

_T = TypeVar("_T", bound=Tensor)

#: A bucket is full at this size; a larger parameter has one of its own.
BUCKET_BYTES = 16 << 20


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

    @contextmanager
    def last_backward(self, params: Sequence[nn.Parameter]) -> Iterator[None]:
        """The block holds the last backward pass of these parameters in this step: what it finishes is sent."""
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
        while len(self._messages) < len(self._buckets):
            self._send(self._buckets[len(self._messages)])
        for message in self._messages:
            if message is not None:
                message.wait()

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
