"""Depthwise convolutions of the image tower: the four sizes of stride 2, three ways; then the others.

cuDNN has fast kernels of 3x3 and 5x5. The ways: a larger kernel, as on a CPU; a padded map, as on CUDA; Triton.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from align.model import mbconv
from align.model.image_tower import ImageTower
from align.model.mbconv import DepthwiseConv2d, convolve, convolve_backward
from align.training.acceleration import triton_lacks
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.machine import attempt, release, synchronise
from benchmarks.gpu.scale import Scale

#: B7, whose layers are the larger ones.
_PROFILE = "coyo"
_WAYS = ("kernel", "map", "triton")
_TIMES = 10

#: Channels, side of the kernel, stride, and side of the map.
Layer = tuple[int, int, int, int]


def layers(scale: Scale) -> list[Layer]:
    """The tower's layers, each size once; those of stride 2 first."""
    config, found = scale.model(_PROFILE), dict[Layer, None]()

    def note(layer: DepthwiseConv2d, inputs: Any, _: Any) -> None:
        found[layer.in_channels, layer.kernel_size[0], layer.stride[0], inputs[0].shape[-1]] = None

    with torch.device("meta"):
        tower = ImageTower(config).eval()
        for module in tower.modules():
            if isinstance(module, DepthwiseConv2d):
                module.register_forward_hook(note)
        tower(torch.zeros(1, 3, config.image_px, config.image_px))
    return sorted(found, key=lambda layer: -layer[2])


def run(scale: Scale, journal: Journal) -> None:
    """Two rows for each layer: forward, and the gradients of map and kernel."""
    size = scale.batches[0]
    ways = [way for way in _WAYS if way != "triton" or not (scale.stand_in or triton_lacks())]
    if "triton" not in ways:
        journal.note("Triton's kernels were not timed: they need a card, a C compiler and Python's headers.")
    torch.backends.cudnn.benchmark = True  # as in training
    for layer in layers(scale):
        if journal.left_s() < 3:
            journal.note("No time was left for the other layers.")
            return
        if attempt(partial(_measure, scale, journal, layer, size, ways)) is None:
            journal.note(f"A layer of {layer[0]:,} channels does not fit at {size:,} pairs.")
        release()


def _measure(scale: Scale, journal: Journal, layer: Layer, size: int, ways: list[str]) -> bool:
    channels, side, stride, px = layer
    kind = torch.float32 if scale.stand_in else torch.bfloat16
    x = torch.randn(size, channels, px, px, device=scale.device).to(kind).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, side, side, device=scale.device, dtype=kind)
    grad = torch.randn_like(convolve(x, weight, stride))
    for what in ("forward", "backward"):
        taken = {way: _ms(scale, _call(way, what, (grad, x, weight), stride)) for way in ways if way in _of(stride)}
        journal.row(
            "depthwise", layer=f"{side}x{side}, stride {stride}", channels=f"{channels:,}", px=px, batch=f"{size:,}",
            what=what, **{f"{way}_ms": number(taken[way]) if way in taken else "" for way in _WAYS},
        )  # fmt: skip
    return True


def _of(stride: int) -> tuple[str, ...]:
    return _WAYS if stride == 2 else _WAYS[1:]


def _call(way: str, what: str, tensors: tuple[Tensor, Tensor, Tensor], stride: int) -> Callable[[], Any]:
    if way == "triton":
        from benchmarks.gpu import depthwise_triton as ours

        return partial(ours.convolve if what == "forward" else ours.convolve_backward, *_needed(what, tensors), stride)

    def by_torch() -> Any:
        with mock.patch.object(mbconv, "pads_maps", lambda _: way == "map"):
            return (convolve if what == "forward" else convolve_backward)(*_needed(what, tensors), stride)

    return by_torch


def _needed(what: str, tensors: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tensors[1:] if what == "forward" else tensors


def _ms(scale: Scale, work: Callable[[], Any]) -> float:
    work(), work()
    synchronise(scale.device)
    start = time.perf_counter()
    for _ in range(1 if scale.stand_in else _TIMES):
        work()
    synchronise(scale.device)
    return 1e3 * (time.perf_counter() - start) / (1 if scale.stand_in else _TIMES)
