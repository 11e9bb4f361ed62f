"""Batch-norm over groups of samples: the paper is silent, and 16 samples are one TPU core's share.

So the result depends on neither batch, ranks nor micro-batches.

Names and shapes in the state dict are those of `nn.BatchNorm2d`. Decision: running statistics are not tracked in
training; they are estimated afterwards (`align.model.image_tower.estimate_statistics`), so they depend on no momentum.

Shapes, as suffixes: B samples, G samples of one group, C channels, H and W the map.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.model import ModelConfig
from align.model.normalisation import Moments, normalise, normalise_backward

#: The eps of EfficientNet in TensorFlow; torch's own is 1e-5.
EPS = 1e-3


class BatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over groups of consecutive samples in training; running statistics in evaluation.

    A training batch must be a multiple of the group or smaller than it; otherwise forward raises ValueError.

    Attributes:
        group: number of samples that share statistics.
        collecting: whether batches in training mode add to the running statistics.
    """

    def __init__(self, num_features: int, eps: float, group: int) -> None:
        super().__init__(num_features, eps=eps, momentum=0.0)
        self.group = group
        self.collecting = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return normalised(x, self)

    def group_of(self, x: Tensor) -> int:
        """Samples per group in this batch. While statistics are estimated, adds the batch to them."""
        group = min(self.group, len(x))
        if len(x) % group:
            raise ValueError(f"a training batch of {len(x)} is not a multiple of the batch-norm group {group}")
        if self.collecting:
            for x_GCHW in torch.split(x, group):
                self._collect(x_GCHW)
        return group

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """The running mean and variance, (C,) each, and the number of groups that they average; no copies."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        return self.running_mean, self.running_var, self.num_batches_tracked

    @torch.no_grad()
    def _collect(self, x_GCHW: Tensor) -> None:
        mean, variance, count = self.statistics()
        count += 1
        share = 1.0 / float(count)
        variance_C, mean_C = torch.var_mean(x_GCHW.float(), dim=(0, 2, 3))
        mean.lerp_(mean_C, share)
        variance.lerp_(variance_C, share)


def normalised(
    x: Tensor, norm: BatchNorm2d, *, silu: bool = False, keep: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Batch-norm in training mode and what follows it, as one operation: residual + keep * act(norm(x)).

    Args:
        x: (B, C, H, W); the only tensor that is kept for backward, besides two numbers per group and channel.
        norm: the layer.
        silu: whether act is SiLU; otherwise it is the identity.
        keep: (B,) factor of each sample, see `align.model.mbconv.StochasticDepth`; None: 1.
        residual: (B, C, H, W); None: 0.
    """
    apply: Any = _Normalised.apply
    return cast(Tensor, apply(x, norm.weight, norm.bias, keep, residual, norm.group_of(x), norm.eps, silu))


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, keep: Tensor | None, residual: Tensor | None, *args: Any
    ) -> Tensor:
        out, mean, inverse = normalise(x, weight, bias, keep, residual, *args)
        ctx.save_for_backward(x, mean, inverse, weight, bias, keep)
        ctx.silu = args[2]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse, weight, bias, keep = ctx.saved_tensors
        scale = None if keep is None else keep[:, None]
        found = normalise_backward(grads[0], x, Moments(mean, inverse), weight, bias, scale, None, ctx.silu)
        return *found, None, grads[0] if ctx.needs_input_grad[4] else None, None, None, None


def batch_norm(config: ModelConfig, num_features: int) -> BatchNorm2d:
    """The layer of a tower."""
    return BatchNorm2d(num_features, EPS, config.batch_norm_group)
