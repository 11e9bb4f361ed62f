"""EfficientNet's block with batch-norm, SiLU and squeeze-excite joined to the convolutions that read their result.

A block's convolutions write three maps: `expanded` and `spread`, both of the expanded width, and `projected`. These,
the block's input and a few numbers per group, sample or channel are what backward needs. Everything between them is
computed from them in one pass over a map, so it may be computed again instead of being kept (`again`, which is
`gradient_checkpointing: cheap`); a convolution is never computed again.

    input -> 1x1 -> expanded -> norm, SiLU -> depthwise -> spread
    -> norm, SiLU, gate -> 1x1 -> projected -> norm -> + input

The joined operations need batch statistics of this process. With running statistics (evaluation, frozen statistics) or
`sync` a block computes what transformers' does, layer by layer.

Shapes, as suffixes: B samples, C channels.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.model.batch_norm import BatchNorm2d, normalised
from align.model.depthwise import convolve, convolve_backward
from align.model.normalisation import (
    Moments,
    activated,
    gate_gradient,
    normalise,
    normalise_backward,
    normalise_pooled,
    silu_is_dear,
)


class MBConv(nn.Module):
    """transformers' `AlignVisionBlock`, whose parts and names it takes over.

    Attributes:
        again: whether what is cheap is computed again in the backward pass instead of kept.
    """

    def __init__(self, upstream: Any) -> None:
        super().__init__()
        for name, part in upstream.named_children():
            self.add_module(name, part)
        self.expands = bool(upstream.expand)
        self.again = False

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, C, H, W) -> the same with the block's number of channels, H and W divided by its stride."""
        block: Any = self
        depthwise, projection = block.depthwise_conv, block.projection
        norms = [depthwise.depthwise_norm, projection.project_bn]
        if self.expands:
            norms.append(block.expansion.expand_bn)
        if not all(type(norm) is BatchNorm2d and norm.training for norm in norms):
            return self._layer_by_layer(hidden_states)
        if self.expands:
            expanded = block.expansion.expand_conv(hidden_states)
            spread = self._joined(_Spread, expanded, norms[2], depthwise.depthwise_conv)
        else:
            spread = depthwise.depthwise_conv(hidden_states)
        squeeze = block.squeeze_excite
        gate = [each for layer in (squeeze.reduce, squeeze.expand) for each in (layer.weight, layer.bias)]
        projected = self._joined(_Projected, spread, norms[0], projection.project_conv, *gate)
        if not projection.apply_dropout:
            return normalised(projected, norms[1])
        return normalised(projected, norms[1], keep=projection.dropout.keep, residual=hidden_states)

    def _joined(self, function: Any, x: Tensor, norm: BatchNorm2d, convolution: nn.Conv2d, *gate: Tensor) -> Tensor:
        weight = convolution.weight.to(x.dtype)  # what autocast does, which does not reach into a function
        settings = norm.group_of(x), norm.eps, convolution.stride[0], self.again
        return cast(Tensor, function.apply(x, norm.weight, norm.bias, weight, settings, *gate))

    def _layer_by_layer(self, hidden_states: Tensor) -> Tensor:
        block: Any = self
        out = block.expansion(hidden_states) if self.expands else hidden_states
        return cast(Tensor, block.projection(hidden_states, block.squeeze_excite(block.depthwise_conv(out))))


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
