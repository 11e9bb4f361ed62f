"""Depthwise convolution with a backward pass that is fast on CPUs, and without a padding copy at stride 2.

oneDNN falls back to a reference kernel for the weight gradient of 5x5 depthwise convolutions and of those on maps
smaller than their kernel: it takes 12 to 28 ms, against 0.1 to 0.5 ms for the forward pass, which is half of a training
step at small image sizes. Here the weight gradient is one sum of products per kernel tap, over the overlap only.

TensorFlow's SAME padding at stride 2 adds one more row and column at the bottom and right. A kernel with an added zero
row at the top and column at the left, under symmetric padding, is the same function without copying the input.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution without bias.

    The weight keeps its usual shape (C, 1, k, k). At stride 2 the output equals that of transformers' `ZeroPad2d`
    followed by a convolution without padding.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        if kernel_size % 2 == 0 or stride not in (1, 2):
            raise ValueError(f"depthwise convolution: kernel {kernel_size} must be odd, stride {stride} 1 or 2")
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // stride, W // stride)."""
        if input.device.type == "cpu" and input.dtype == torch.float32:
            apply: Any = _Depthwise.apply
            return cast(Tensor, apply(input, self.weight, self.stride[0]))
        return convolve(input, self.weight, self.stride[0])

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """The same function as a layer of torch; at stride 2 its kernel includes the zeros."""
        weight = _shifted(self.weight, self.stride[0])
        layer = nn.Conv2d(
            self.in_channels, self.in_channels, weight.shape[-1], self.stride[0], self.kernel_size[0] // 2,
            groups=self.in_channels, bias=False,
        )  # fmt: skip
        layer.weight.copy_(weight)
        return layer


def _shifted(weight: Tensor, stride: int) -> Tensor:
    return F.pad(weight, (1, 0, 1, 0)) if stride == 2 else weight


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The layer as a function: (B, C, H, W) by (C, 1, k, k) -> (B, C, H // stride, W // stride)."""
    return F.conv2d(x, _shifted(weight, stride), stride=stride, padding=weight.shape[-1] // 2, groups=x.shape[1])


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, *, needs_x: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradients of `convolve` for x and weight; None for x if it is not needed."""
    size = weight.shape[-1]
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    # oneDNN's own kernel is fast here
    built_in = not on_cpu or (size == 3 and stride == 1 and min(x.shape[2:]) > 2)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, _shifted(weight, stride), None, (stride, stride), (size // 2, size // 2), (1, 1), False, (0, 0),
        x.shape[1], (needs_x, built_in, False),
    )  # fmt: skip
    if not built_in:
        return grad_x, _weight_gradient(x, grad, size, stride)
    return grad_x, grad_weight[:, :, stride - 1 :, stride - 1 :]  # without the zeros


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return convolve(x, weight, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        return *convolve_backward(grads[0], x, weight, ctx.stride, needs_x=ctx.needs_input_grad[0]), None


def _weight_gradient(x: Tensor, grad: Tensor, size: int, stride: int) -> Tensor:
    """(C, 1, k, k): for each tap of the kernel, the sum over samples and positions of input times output gradient."""
    before = size // 2 - (stride - 1)  # rows of padding above the map
    rows, columns = grad.shape[2:]
    x, grad = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    taps = []
    for i in range(size):
        for j in range(size):
            top, left = i - before, j - before
            first_row, first_column = max(0, -(top // stride)), max(0, -(left // stride))
            num_rows = min(rows, (x.shape[1] - 1 - top) // stride + 1) - first_row
            num_columns = min(columns, (x.shape[2] - 1 - left) // stride + 1) - first_column
            if num_rows <= 0 or num_columns <= 0:
                taps.append(x.new_zeros(x.shape[3]))
                continue
            row, column = first_row * stride + top, first_column * stride + left
            part = x[:, row : row + stride * num_rows : stride, column : column + stride * num_columns : stride]
            overlap = grad[:, first_row : first_row + num_rows, first_column : first_column + num_columns]
            taps.append((part * overlap).sum((0, 1, 2)))
    return torch.stack(taps, 1).view(-1, 1, size, size)
