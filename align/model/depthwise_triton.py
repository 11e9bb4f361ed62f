"""Depthwise convolutions on CUDA by kernels of our own (`align.model.triton_kernels`), as operations of torch.

cuDNN is fast at the kernels and paddings that others' models have. What these two read and write is a map once and its
gradient once, whatever the stride, and they add in a fixed order. They read maps as channels-last.
"""

# mypy: disable-error-code="no-untyped-call"
# fmt: off

from __future__ import annotations

import torch
import triton
from torch import Tensor

from align.model import triton_kernels as code

#: Places and channels of a tile; places whose gradients a program adds up.
_ROWS, _COLUMNS, _SPAN = 32, 64, 512
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _tile(weight: Tensor, stride: int) -> dict[str, int]:
    """`BEFORE`: rows of padding above the map, as in TensorFlow's SAME."""
    channels, size = len(weight), weight.shape[-1]
    unit = min(16, channels & -channels)
    return {"SIZE": size, "STRIDE": stride, "BEFORE": size // 2 - (stride - 1), "UNIT": unit, **_OPTIONS}


def _apply(x: Tensor, weight: Tensor, out: Tensor, stride: int, *, back: bool) -> Tensor:
    tile, channels, (rows, columns) = _tile(weight, stride), len(weight), out.shape[2:]
    parts = triton.cdiv(rows * columns, _ROWS)
    with torch.cuda.device_of(x):
        code.depthwise[len(x) * parts, triton.cdiv(channels, _COLUMNS)](
            _channels_last(x), weight.view(channels, -1).t().contiguous(), out, *x.shape[2:], rows, columns, parts,
            channels // tile["UNIT"], BACK=back, ROWS=_ROWS, COLUMNS=_COLUMNS, **tile,
        )
    return out


def _empty(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty(len(x), rows, columns, x.shape[1], dtype=x.dtype).permute(0, 3, 1, 2)


@torch.library.custom_op("align::depthwise", mutates_args=())
def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """See `align.model.mbconv.convolve`."""
    return _apply(x, weight, _empty(x, x.shape[2] // stride, x.shape[3] // stride), stride, back=False)


@torch.library.custom_op("align::depthwise_backward", mutates_args=())
def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, needs_x: bool) -> tuple[Tensor, Tensor]:
    """See `align.model.mbconv.convolve_backward`; without `needs_x` the first result is empty."""
    tile, channels, (rows, columns) = _tile(weight, stride), len(weight), grad.shape[2:]
    parts = triton.cdiv(rows * columns, _SPAN)
    sums = x.new_empty(len(x) * parts, tile["SIZE"] ** 2, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        code.depthwise_sums[len(x) * parts, triton.cdiv(channels, _COLUMNS)](
            _channels_last(grad), _channels_last(x), sums, *x.shape[2:], rows, columns, _SPAN, parts,
            channels // tile["UNIT"], ROWS=_ROWS, COLUMNS=_COLUMNS, **tile,
        )
    grad_x = _apply(grad, weight, _empty(x, *x.shape[2:]), stride, back=True) if needs_x else x.new_empty(0)
    return grad_x, sums.sum(0).t().reshape(weight.shape).to(weight.dtype)


@convolve.register_fake
def _(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return _empty(x, x.shape[2] // stride, x.shape[3] // stride)


@convolve_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, stride: int, needs_x: bool) -> tuple[Tensor, Tensor]:
    return _empty(x, *x.shape[2:]) if needs_x else x.new_empty(0), torch.empty_like(weight)
