"""Depthwise convolutions in Triton, forward and both gradients: a third way, which `depthwise.py` times beside torch's.

Nobody has timed them yet. They read and write a map once and its gradient once, whatever the stride, and add in a fixed
order, without atomics. They read maps as channels-last. Equal to torch's in Triton's interpreter (`make test-full`),
which also compiles them for GPUs that are not here.
"""

# a kernel takes every pointer and size as an argument of its own
# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"
# fmt: off

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Places and channels of a tile; places whose gradients a program adds up.
_ROWS, _COLUMNS, _SPAN = 32, 64, 512
_OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["rows", "parts"])
def _convolve(
    x, kernel, out, height, width, rows, columns, parts, units, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    BEFORE: tl.constexpr, BACK: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """A depthwise convolution from a map of height x width to one of rows x columns, or the gradient of its input.

    `kernel` has a row for each tap. Position p of the output reads p * STRIDE + tap - BEFORE of the input; its gradient
    comes BACK, from (p + BEFORE - tap) / STRIDE of the output's where that is whole.
    """
    program, channels = tl.program_id(0), units * UNIT
    sample, first = (program // parts).to(tl.int64), (program % parts) * ROWS
    place = first + tl.arange(0, ROWS)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid, there = channel < channels, place < rows * columns
    down, across = place // columns, place % columns
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(SIZE):
        for j in tl.static_range(SIZE):
            if BACK:
                row, column = down + BEFORE - i, across + BEFORE - j
                inside = there & (row % STRIDE == 0) & (column % STRIDE == 0) & (row >= 0) & (column >= 0)
                row, column = row // STRIDE, column // STRIDE
            else:
                row, column = down * STRIDE + i - BEFORE, across * STRIDE + j - BEFORE
                inside = there & (row >= 0) & (column >= 0)
            inside = inside & (row < height) & (column < width)
            where = (row * width + column)[:, None] * channels + channel[None, :]
            own = sample * height * width * channels
            value = tl.load(x + own + where, mask=inside[:, None] & valid[None, :], other=0.0).to(tl.float32)
            tap = kernel + (i * SIZE + j) * channels + channel
            taps = tl.load(tap, mask=valid, other=0.0).to(tl.float32)
            total += value * taps[None, :]
    where = place[:, None] * channels + channel[None, :]
    at = sample * rows * columns * channels + where
    tl.store(out + at, total.to(out.dtype.element_ty), mask=there[:, None] & valid[None, :])


@triton.jit(do_not_specialize=["rows", "span", "parts"])
def _sums(
    grad, x, out, height, width, rows, columns, span, parts, units, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    BEFORE: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """The gradient of each tap from `span` places of a sample's output. The taps read the same, which L1 holds."""
    program, channels = tl.program_id(0), units * UNIT
    sample, first = (program // parts).to(tl.int64), (program % parts) * span
    last = tl.minimum(first + span, rows * columns)
    lane, channel = tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    valid = channel < channels
    for tap in range(SIZE * SIZE):
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(first, last, ROWS):
            place = start + lane
            row = place // columns * STRIDE + tap // SIZE - BEFORE
            column = place % columns * STRIDE + tap % SIZE - BEFORE
            inside = (place < last) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            both = inside[:, None] & valid[None, :]
            at = sample * rows * columns * channels + (place[:, None] * channels + channel[None, :])
            value = tl.load(grad + at, mask=both, other=0.0).to(tl.float32)
            where = (row * width + column)[:, None] * channels + channel[None, :]
            own = tl.load(x + sample * height * width * channels + where, mask=both, other=0.0).to(tl.float32)
            total += value * own
        at = (program.to(tl.int64) * (SIZE * SIZE) + tap) * channels + channel
        tl.store(out + at, tl.sum(total, 0), mask=valid)



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
        _convolve[len(x) * parts, triton.cdiv(channels, _COLUMNS)](
            _channels_last(x), weight.view(channels, -1).t().contiguous(), out, *x.shape[2:], rows, columns, parts,
            channels // tile["UNIT"], BACK=back, ROWS=_ROWS, COLUMNS=_COLUMNS, **tile,
        )
    return out


def _empty(x: Tensor, rows: int, columns: int) -> Tensor:
    return x.new_empty(len(x), rows, columns, x.shape[1], dtype=x.dtype).permute(0, 3, 1, 2)


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """See `align.model.mbconv.convolve`."""
    return _apply(x, weight, _empty(x, x.shape[2] // stride, x.shape[3] // stride), stride, back=False)


def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """See `align.model.mbconv.convolve_backward`."""
    tile, channels, (rows, columns) = _tile(weight, stride), len(weight), grad.shape[2:]
    parts = triton.cdiv(rows * columns, _SPAN)
    sums = x.new_empty(len(x) * parts, tile["SIZE"] ** 2, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _sums[len(x) * parts, triton.cdiv(channels, _COLUMNS)](
            _channels_last(grad), _channels_last(x), sums, *x.shape[2:], rows, columns, _SPAN, parts,
            channels // tile["UNIT"], ROWS=_ROWS, COLUMNS=_COLUMNS, **tile,
        )
    grad_x = _apply(grad, weight, _empty(x, *x.shape[2:]), stride, back=True)
    return grad_x, sums.sum(0).t().reshape(weight.shape).to(weight.dtype)
