"""EfficientNet's block with batch-norm, SiLU and squeeze-excite joined to the convolutions that read their result.

A block's convolutions write three maps: `expanded` and `spread`, both of the expanded width, and `projected`. Backward
needs these, the block's input and a few numbers per group, sample or channel. Everything else is computed from them in
one pass over a map, so it may be computed again instead of being kept (`again`, which is
`gradient_checkpointing: cheap`). A convolution is never computed again.

    input -> 1x1 -> expanded -> norm, SiLU -> depthwise -> spread
    -> norm, SiLU, gate -> 1x1 -> projected -> norm -> + input

The joined operations need batch statistics. With running statistics (evaluation, frozen statistics) a block computes
layer by layer.

Shapes, as suffixes: B samples, C channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.model import ModelConfig
from align.model.batch_norm import BatchNorm2d, batch_norm, normalised
from align.model.normalisation import (
    Moments,
    activated,
    gate_gradient,
    normalise,
    normalise_backward,
    normalise_pooled,
    silu_is_dear,
)


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


def _padded(x: Tensor, weight: Tensor, stride: int) -> tuple[Tensor, Tensor, int]:
    """Map, kernel and symmetric padding that compute the layer."""
    half = weight.shape[-1] // 2
    if stride == 2 and pads_maps(x):
        return F.pad(x, (half - 1, half, half - 1, half)), weight, 0
    return x, _shifted(weight, stride), half


def convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The layer as a function: (B, C, H, W) by (C, 1, k, k) -> (B, C, H // stride, W // stride)."""
    source, kernel, padding = _padded(x, weight, stride)
    return F.conv2d(source, kernel, stride=stride, padding=padding, groups=x.shape[1])


def convolve_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, *, needs_x: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradients of `convolve` for x and weight; None for x if it is not needed."""
    size = weight.shape[-1]
    source, kernel, padding = _padded(x, weight, stride)
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    # oneDNN's own kernel is fast here
    built_in = not on_cpu or (size == 3 and stride == 1 and min(x.shape[2:]) > 2)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, source, kernel, None, (stride, stride), (padding, padding), (1, 1), False, (0, 0), x.shape[1],
        (needs_x, built_in, False),
    )  # fmt: skip
    if needs_x and source is not x:
        above, (rows, columns) = size // 2 - 1, x.shape[2:]
        grad_x = grad_x[:, :, above : above + rows, above : above + columns]
    if not built_in:
        return grad_x, _weight_gradient(x, grad, size, stride)
    zeros = kernel.shape[-1] - size
    return grad_x, grad_weight[:, :, zeros:, zeros:]


class _Convolution(torch.autograd.Function):
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


class BlockShape(NamedTuple):
    """What differs from block to block.

    Attributes:
        in_channels, out_channels: of its input and output.
        kernel_size, stride: of the depthwise convolution.
        expansion: factor by which the block widens its input; 1: it does not, and has no layers for it.
        drop_rate: see `StochasticDepth`.
        adds: whether its input is added to its output.
    """

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: int
    expansion: int
    drop_rate: float
    adds: bool


class StochasticDepth(nn.Module):
    """Drops a residual branch per sample and scales the kept ones by 1 / (1 - rate). No parameters.

    The tower sets `keep` before each forward pass in training: (B,), 0 or 1 / (1 - rate) for each sample, or None. So
    the caller controls the randomness.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.keep is None:
            return x
        return x * self.keep.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


class MBConv(nn.Module):
    """One block. Names in the state dict are those of transformers' `AlignVisionBlock`.

    Attributes:
        again: whether the backward pass computes cheap operations again instead of keeping their results.
    """

    def __init__(self, config: ModelConfig, shape: BlockShape) -> None:
        super().__init__()
        width = shape.in_channels * shape.expansion
        self.expansion = _Expansion(config, shape.in_channels, width) if shape.expansion > 1 else None
        self.depthwise_conv = _Depthwise(config, width, shape.kernel_size, shape.stride)
        self.squeeze_excite = _SqueezeExcite(width, max(1, shape.in_channels // 4))
        self.projection = _Projection(config, width, shape)
        self.again = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) -> the same with the block's number of channels, and H and W divided by its stride."""
        expansion, depthwise, projection = self.expansion, self.depthwise_conv, self.projection
        norms = [depthwise.depthwise_norm, projection.project_bn]
        if expansion is not None:
            norms.append(expansion.expand_bn)
        if not all(norm.training for norm in norms):
            return self._layer_by_layer(hidden_states)
        if expansion is not None:
            expanded = expansion.expand_conv(hidden_states)
            spread = self._joined(_Spread, expanded, expansion.expand_bn, depthwise.depthwise_conv)
        else:
            spread = depthwise.depthwise_conv(hidden_states)
        squeeze = self.squeeze_excite
        gate = [each for layer in (squeeze.reduce, squeeze.expand) for each in (layer.weight, layer.bias)]
        projected = self._joined(_Projected, spread, depthwise.depthwise_norm, projection.project_conv, *gate)
        if not projection.adds:
            return normalised(projected, projection.project_bn)
        return normalised(projected, projection.project_bn, keep=projection.dropout.keep, residual=hidden_states)

    def _joined(
        self, function: Any, x: Tensor, norm: BatchNorm2d, convolution: nn.Conv2d, *gate: Tensor | None
    ) -> Tensor:
        weight = convolution.weight.to(x.dtype)  # as autocast would, which does not reach into a function
        settings = norm.group_of(x), norm.eps, convolution.stride[0], self.again
        return cast(Tensor, function.apply(x, norm.weight, norm.bias, weight, settings, *gate))

    def _layer_by_layer(self, hidden_states: Tensor) -> Tensor:
        out = hidden_states if self.expansion is None else self.expansion(hidden_states)
        return cast(Tensor, self.projection(hidden_states, self.squeeze_excite(self.depthwise_conv(out))))


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
    def __init__(self, config: ModelConfig, width: int, shape: BlockShape) -> None:
        super().__init__()
        self.project_conv = nn.Conv2d(width, shape.out_channels, 1, bias=False)
        self.project_bn = batch_norm(config, shape.out_channels)
        self.dropout = StochasticDepth(shape.drop_rate)
        self.adds = shape.adds

    def forward(self, hidden_states: Tensor, x: Tensor) -> Tensor:
        out = self.project_bn(self.project_conv(x))
        return cast(Tensor, self.dropout(out) + hidden_states if self.adds else out)


class _Spread(torch.autograd.Function):
    """Norm, SiLU, depthwise convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, settings: tuple[int, float, int, bool]
    ) -> Tensor:
        group, eps, ctx.stride, again = settings
        active, mean, inverse = normalise(x, weight, bias, None, None, group, eps, True)
        ctx.save_for_backward(x, mean, inverse, weight, bias, kernel, None if again else active)
        return convolve(active, kernel, ctx.stride)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias, kernel, active = ctx.saved_tensors
        moments = Moments(mean, inverse)
        if active is None:
            active = activated(x, moments, weight, bias)
        grad, grad_kernel = convolve_backward(grads[0], active, kernel, ctx.stride)
        del active
        assert grad is not None
        return *normalise_backward(grad, x, moments, weight, bias, None, None, True), grad_kernel, None


class _Projected(torch.autograd.Function):
    """Norm, SiLU, squeeze-excite, 1x1 convolution. The gate is computed in the type of its weights."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, kernel: Tensor, settings: tuple[int, float, int, bool],
        *gate: Tensor,
    ) -> Tensor:  # fmt: skip
        group, eps, _, again = settings
        reduce, reduce_bias, expand, expand_bias = gate
        written = ctx.written = silu_is_dear(x)
        if written:  # its map is written once and read twice
            active, mean, inverse = normalise(x, weight, bias, None, None, group, eps, True)
            pooled = active.mean((2, 3), keepdim=True)
        else:
            pooled, mean, inverse = normalise_pooled(x, weight, bias, group, eps)
            pooled = pooled[:, :, None, None]
        pooled = pooled.to(reduce.dtype)
        with _without_autocast(x):
            reduced = F.conv2d(pooled, reduce, reduce_bias)
            factors = F.conv2d(F.silu(reduced), expand, expand_bias).sigmoid()
        if written:
            scaled, kept = active * factors, active
        else:
            scaled = kept = activated(x, Moments(mean, inverse), weight, bias, factors[:, :, 0, 0])
        ctx.save_for_backward(
            x, mean, inverse, weight, bias, kernel, reduce, expand, pooled, reduced, factors, None if again else kept
        )
        return F.conv2d(scaled, kernel)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias, kernel, reduce, expand, pooled, reduced, factors, kept = ctx.saved_tensors
        moments = Moments(mean, inverse)
        if kept is None:
            kept = activated(x, moments, weight, bias, None if ctx.written else factors[:, :, 0, 0])
        scaled = kept * factors if ctx.written else kept
        grad_scaled, grad_kernel, _ = _pointwise_backward(grads[0], scaled, kernel, has_bias=False)
        if ctx.written:
            grad_factors = torch.mul(kept, grad_scaled, out=scaled).sum((2, 3), keepdim=True)
        else:
            grad_factors = gate_gradient(grad_scaled, x, moments, weight, bias)[:, :, None, None]
        del scaled
        grad_factors = grad_factors.to(factors.dtype)
        grad_logits = torch.ops.aten.sigmoid_backward(grad_factors, factors)
        grad_active, *grad_expand = _pointwise_backward(grad_logits, F.silu(reduced), expand)
        grad_reduced = torch.ops.aten.silu_backward(grad_active, reduced)
        grad_pooled, *grad_reduce = _pointwise_backward(grad_reduced, pooled, reduce)
        shift = grad_pooled[:, :, 0, 0] / (x.shape[2] * x.shape[3])
        found = normalise_backward(grad_scaled, x, moments, weight, bias, factors[:, :, 0, 0], shift, True)
        return *found, grad_kernel, None, *grad_reduce, *grad_expand


def _without_autocast(x: Tensor) -> Any:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _pointwise_backward(grad: Tensor, x: Tensor, kernel: Tensor, *, has_bias: bool = True) -> tuple[Tensor, ...]:
    """Gradients of a 1x1 convolution: of its input, kernel and bias."""
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        grad, x, kernel, [len(kernel)] if has_bias else None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1,
        (True, True, has_bias),
    )  # fmt: skip
    return found
