"""Counts what torch's operations compute, read and write, and what they leave for a backward pass.

On the meta device towers take no memory, and operations no time.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_VIEWS = frozenset({
    "view", "t", "transpose", "permute", "expand", "slice", "split", "split_with_sizes", "select", "unbind",
    "unsqueeze", "squeeze", "detach", "alias", "unflatten", "flatten", "_unsafe_view",
})  # fmt: skip
#: Operation -> how often it reads its maps: statistics and then the values, or two gradients by two kernels.
_PASSES = {"native_batch_norm": 2, "native_batch_norm_backward": 2}
#: A compiler joins these to what reads their results, as all that torch calls pointwise.
_POINTWISE = frozenset({"_to_copy", "constant_pad_nd"})


class Work(TorchDispatchMode):
    """Counts what is dispatched within it; views cost nothing and are left out.

    `compiled`: as torch.compile computes, an element-wise operation takes place where its result is read, out of what
    lies in memory. Convolutions and products need what they read in memory, and sums over the same values share a pass.

    `done` has the name, the floating-point operations, and the bytes read and written, of each operation.
    """

    def __init__(self, *, compiled: bool = False) -> None:
        super().__init__()
        self.done: list[tuple[str, int, int]] = []
        self._compiled = compiled
        self._made: dict[int, StorageWeakRef] = {}  # while it is here, no other storage has its address
        self._sizes: dict[int, int] = {}
        self._sources: dict[int, set[int]] = {}  # of what is not in memory
        self._last = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, packet = func(*args, **(kwargs or {})), func.overloadpacket
        name, operations, moved = packet.__name__, 0, 0
        given, made = _tensors((args, kwargs)), _tensors(result)
        self._sizes |= {_key(each): each.untyped_storage().nbytes() for each in given}
        for each in made:
            if _key(each) not in self._sizes:
                self._sizes[_key(each)] = each.untyped_storage().nbytes()
                self._made[_key(each)] = StorageWeakRef(each.untyped_storage())
        if name in _VIEWS:
            return result
        if self._compiled and (torch.Tag.pointwise in func.tags or name in _POINTWISE):
            self._sources |= dict.fromkeys(map(_key, made), self._sources_of(map(_key, given)))
            return result
        if not name.startswith(("empty", "new_empty")):
            read = self._read(given, in_memory=packet in flop_registry) if self._compiled else _bytes(given)
            moved = read * _PASSES.get(name, 1) + _bytes(made)
        if name == "convolution_backward":  # both of its kernels read the gradient; torch's own count forgets groups
            moved += _bytes([args[0]])
            operations = 2 * args[0].numel() * args[2][0].numel() * sum(args[-1][:2])
        elif packet in flop_registry:
            operations = flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        self.done.append((name, operations, moved))
        return result

    @property
    def kept_bytes(self) -> int:
        """What was made within it and has a use yet; compiled: what that is computed from."""
        alive = (key for key, storage in self._made.items() if not storage.expired())
        return sum(self._sizes[key] for key in self._sources_of(alive) & self._made.keys())

    def _sources_of(self, keys: Iterable[int]) -> set[int]:
        return {source for key in keys for source in self._sources.get(key, (key,))}

    def _read(self, tensors: list[Tensor], *, in_memory: bool) -> int:
        """Bytes that reading them moves; with `in_memory` also those of writing what is not there yet."""
        sources = self._sources_of(map(_key, tensors))
        moved = 0 if sources <= self._last else sum(self._sizes[key] for key in sources)
        self._last = set() if in_memory else sources
        for key in {_key(each) for each in tensors} & self._sources.keys() if in_memory else ():
            moved += 2 * self._sizes[key]
            del self._sources[key]
        return moved


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensors: list[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)
