"""EfficientNet's block: six layers, of which the backward pass may compute all but the convolutions again.

    input -> 1x1, norm, SiLU -> depthwise, norm, SiLU -> squeeze-excite -> 1x1, norm -> + input

Shapes, as suffixes: B samples, C channels.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from align.config.model import ModelConfig
from align.model.batch_norm import batch_norm

#: What `torch.utils.checkpoint` keeps of a block.
_CONVOLUTIONS = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default])


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution without bias, whose backward pass is fast on CPUs.

    oneDNN falls back to a reference kernel for the weight gradient of 5x5 depthwise convolutions and of those on maps
    smaller than their kernel: 12 to 28 ms, against 0.1 to 0.5 ms for the forward pass, which is half of a training step
    at small image sizes. Here the weight gradient is one sum of products per kernel tap, over the overlap only.

    The weight keeps its usual shape (C, 1, k, k). TensorFlow's SAME padding at stride 2 adds one more row and column at
    the bottom and right. On a CPU a kernel with an added zero row at the top and column at the left, under symmetric
    padding, is the same function without copying the input.
    """

    def __init__(self, channels: int, kernel_size: int, stride: int) -> None:
        if kernel_size % 2 == 0 or stride not in (1, 2):
            raise ValueError(f"depthwise convolution: kernel {kernel_size} must be odd, stride {stride} 1 or 2")
        super().__init__(channels, channels, kernel_size, stride, kernel_size // 2, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // stride, W // stride)."""
        if input.device.type == "cpu" and input.dtype == torch.float32:
            apply: Any = _Convolution.apply
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


def pads_maps(x: Tensor) -> bool:
    """Whether SAME padding is put around the map: cuDNN is fast at 3x3 and 5x5, and a CPU is slow to copy maps."""
    return x.device.type in ("cuda", "meta")  # what is counted on `meta` is what a GPU computes


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The layer as a function: (B, C, H, W) by (C, 1, k, k) -> (B, C, H // stride, W // stride)."""
    half = weight.shape[-1] // 2
    if stride == 2 and pads_maps(x):
        return F.conv2d(F.pad(x, (half - 1, half, half - 1, half)), weight, stride=2, groups=x.shape[1])
    return F.conv2d(x, _shifted(weight, stride), stride=stride, padding=half, groups=x.shape[1])


class _Convolution(torch.autograd.Function):
    """On a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return convolve(x, weight, stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (x, weight), stride = ctx.saved_tensors, ctx.stride
        size = weight.shape[-1]
        is_fast = size == 3 and stride == 1 and min(x.shape[2:]) > 2  # oneDNN's own weight gradient
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grads[0], x, _shifted(weight, stride), None, (stride, stride), (size // 2, size // 2), (1, 1), False,
            (0, 0), x.shape[1], (ctx.needs_input_grad[0], is_fast, False),
        )  # fmt: skip
        return grad_x, grad_weight if is_fast else _weight_gradient(x, grads[0], size, stride), None


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


class BlockShape(NamedTuple):
    """What differs from block to block.

    Attributes:
        in_channels, out_channels: of its input and output.
        kernel_size, stride: of the depthwise convolution.
        expansion: factor by which the block widens its input; 1: it does not, and has no layers for it.
        drop_rate: of stochastic depth, by which samples lose what the block adds to them.
        adds: whether its input is added to its output.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expansion: int
    drop_rate: float
    adds: bool


class MBConv(nn.Module):
    """One block. Names in the state dict are those of transformers' `AlignVisionBlock`.

    Attributes:
        adds, drop_rate: see `BlockShape`.
        keeps_convolutions: whether the backward pass computes everything but convolutions again, instead of keeping it.
    """

    def __init__(self, config: ModelConfig, shape: BlockShape) -> None:
        super().__init__()
        width = shape.in_channels * shape.expansion
        self.expansion = _Expansion(config, shape.in_channels, width) if shape.expansion > 1 else None
        self.depthwise_conv = _Depthwise(config, width, shape.kernel_size, shape.stride)
        self.squeeze_excite = _SqueezeExcite(width, max(1, shape.in_channels // 4))
        self.projection = _Projection(config, width, shape.out_channels)
        self.adds, self.drop_rate = shape.adds, shape.drop_rate
        self.keeps_convolutions = False

    def forward(self, hidden_states: Tensor, keep: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            hidden_states: (B, C, H, W).
            keep: (B,), 0 for the samples that stochastic depth drops and 1 / (1 - rate) for the others; None: it drops
                none.

        Returns:
            The same with the block's number of channels, and H and W divided by its stride.
        """
        if not (self.keeps_convolutions and self.training and torch.is_grad_enabled()):
            return self._layers(hidden_states, keep)
        found = checkpoint(
            self._layers, hidden_states, keep, use_reentrant=False, preserve_rng_state=False, context_fn=_CONVOLUTIONS
        )
        return cast(Tensor, found)

    def _layers(self, hidden_states: Tensor, keep: Tensor | None) -> Tensor:
        out = hidden_states if self.expansion is None else self.expansion(hidden_states)
        out = self.projection(self.squeeze_excite(self.depthwise_conv(out)))
        if not self.adds:
            return cast(Tensor, out)
        if keep is not None:
            out = out * keep.to(out.dtype)[:, None, None, None]
        return cast(Tensor, out + hidden_states)


class _Expansion(nn.Module):
    def __init__(self, config: ModelConfig, in_channels: int, width: int) -> None:
        super().__init__()
        self.expand_conv = nn.Conv2d(in_channels, width, 1, bias=False)
        self.expand_bn = batch_norm(config, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.expand_bn(self.expand_conv(x)))


class _Depthwise(nn.Module):
    def __init__(self, config: ModelConfig, width: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.depthwise_conv = DepthwiseConv2d(width, kernel_size, stride)
        self.depthwise_norm = batch_norm(config, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.depthwise_norm(self.depthwise_conv(x)))


class _SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.expand(reduced))


class _Projection(nn.Module):
    def __init__(self, config: ModelConfig, width: int, out_channels: int) -> None:
        super().__init__()
        self.project_conv = nn.Conv2d(width, out_channels, 1, bias=False)
        self.project_bn = batch_norm(config, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.project_bn(self.project_conv(x)))
