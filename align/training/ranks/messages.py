"""A value that one rank sends to the others, as JSON and the bytes of its tensors.

Anybody who reaches a rank's port can make it read bytes; unpickling those would run code. So what travels is not the
file of a checkpoint, which is a pickle with its tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

#: Keys and indices that lead to a tensor, from the outermost.
Path = tuple[Any, ...]

#: (number of elements, dtype) -> the next tensor, in the order of its memory.
Receive = Callable[[int, torch.dtype], Tensor]

#: What a rank keeps of a tensor of the value: all of it, its rows, or another tensor into which it was copied.
Keep = Callable[[Path, Tensor], Any]

#: Sent at a time.
PIECE_BYTES = 16 << 20


def pack(value: Any) -> tuple[bytes, list[Tensor]]:
    """Takes a value apart.

    Args:
        value: dicts (with plain keys), lists, tuples, None, booleans, numbers, strings and CPU tensors.

    Returns:
        JSON, and the tensors in the order in which `unpack` asks for them; send each as `flat`.
    """
    tensors: list[Tensor] = []
    return json.dumps(_packed(value, tensors)).encode(), tensors


def flat(tensor: Tensor) -> Tensor:
    """(N,) in the order of memory, so that sums over it round as they do for the sender; a view if it has no gaps."""
    dense = tensor.stride() == torch.empty_like(tensor, device="meta").stride()
    return (tensor if dense else tensor.clone()).as_strided((tensor.numel(),), (1,))


def pieces(flat: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor of one dimension, as views of at most `PIECE_BYTES`."""
    return iter(torch.split(flat.view(torch.uint8), PIECE_BYTES) if flat.numel() else ())


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


def unpack(message: bytes, receive: Receive, keep: Keep) -> Any:
    """Puts together what `pack` took apart, with what is kept of each tensor in its place.

    One tensor is received at a time, and given up when `keep` has returned.
    """
    return _unpacked(json.loads(message), receive, keep, ())


def _unpacked(node: list[Any], receive: Receive, keep: Keep, path: Path) -> Any:
    kind, value = node[:2]
    if kind == "tensor":
        stride, dtype = node[2:]
        return keep(path, receive(math.prod(value), getattr(torch, dtype)).as_strided(value, stride))
    if kind == "dict":
        return {key: _unpacked(item, receive, keep, (*path, key)) for key, item in value}
    if kind in ("list", "tuple"):
        items = [_unpacked(item, receive, keep, (*path, index)) for index, item in enumerate(value)]
        return tuple(items) if kind == "tuple" else items
    return value
