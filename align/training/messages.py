"""A value that one rank sends to the others, as JSON and tensors.

Whoever reaches a rank's port can make it read bytes; unpickling those would run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: (number of elements, dtype) -> the next tensor as `flat` sent it.
Receive = Callable[[int, torch.dtype], Tensor]


def pack(value: Any) -> tuple[bytes, list[Tensor]]:
    """Takes a value apart.

    Args:
        value: dicts (with plain keys), lists, tuples, None, booleans, numbers, strings and tensors.

    Returns:
        JSON, and the tensors in the order in which `unpack` asks for them; send each as `flat`.
    """
    tensors: list[Tensor] = []
    return json.dumps(_packed(value, tensors)).encode(), tensors


def flat(tensor: Tensor) -> Tensor:
    """A copy, (N,), in the order of memory: sums over it must round as they do for the sender's."""
    return tensor.clone().as_strided((tensor.numel(),), (1,))


def _packed(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        stride = torch.empty_like(value, device="meta").stride()
        return ["tensor", list(value.shape), stride, str(value.dtype).removeprefix("torch.")]
    if isinstance(value, dict):  # as pairs: JSON's keys are strings, an optimiser's are numbers
        return ["dict", [[key, _packed(item, tensors)] for key, item in value.items()]]
    if isinstance(value, list | tuple):
        return ["tuple" if isinstance(value, tuple) else "list", [_packed(item, tensors) for item in value]]
    return ["plain", value]


def unpack(message: bytes, receive: Receive) -> Any:
    """Puts together what `pack` took apart."""
    return _unpacked(json.loads(message), receive)


def _unpacked(node: list[Any], receive: Receive) -> Any:
    kind, value = node[:2]
    if kind == "tensor":
        stride, dtype = node[2:]
        return receive(math.prod(value), getattr(torch, dtype)).as_strided(value, stride)
    if kind == "dict":
        return {key: _unpacked(item, receive) for key, item in value}
    if kind in ("list", "tuple"):
        items = [_unpacked(item, receive) for item in value]
        return tuple(items) if kind == "tuple" else items
    return value
