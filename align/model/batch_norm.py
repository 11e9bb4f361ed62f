"""Batch-norm of three kinds: over groups of samples, over a rank's batch, over the batches of all ranks.

The paper is silent. `group` is the default: 16 samples, one TPU core's share, so the result depends on neither batch,
ranks nor micro-batches. `batch` is plain batch-norm. `sync` computes the same as `torch.nn.SyncBatchNorm`, which needs
a GPU; this one runs on any device.

Names and shapes in the state dict are those of `nn.BatchNorm2d`. Decision: no kind tracks running statistics in
training; they are estimated afterwards (`align.model.image_tower.estimate_statistics`), so they depend on no momentum.

Shapes, as suffixes: B samples, G samples of one group, C channels, H and W the map, R ranks.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
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
        group: number of samples that share statistics; None: the whole batch.
        collecting: whether batches in training mode add to the running statistics.
    """

    def __init__(self, num_features: int, eps: float, group: int | None) -> None:
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
        group = min(self.group or len(x), len(x))
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
        norm: of any kind but `SyncBatchNorm2d`.
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


class SyncBatchNorm2d(BatchNorm2d):
    """Batch-norm over the batches of all ranks of torch's default process group; without one, over the batch.

    In training every rank must call it the same number of times. Without gradients it sends no messages: one rank alone
    estimates the running statistics and measures how well they fit.
    """

    def __init__(self, num_features: int, eps: float) -> None:
        super().__init__(num_features, eps, None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        world_size = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if not self.training or not torch.is_grad_enabled() or world_size == 1:
            return super().forward(x)
        apply: Any = _Synchronised.apply
        return cast(Tensor, apply(x, self.weight, self.bias, self.eps))


class _Synchronised(torch.autograd.Function):
    """Keeps the input and two numbers per channel for backward; each pass sends a few numbers per channel once."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        variance_C, mean_C = torch.var_mean(x_BCHW.float(), dim=(0, 2, 3), correction=0)
        width = len(mean_C)
        # each rank fills its own row of a table of zeros, so that one sum sends every rank's moments to all
        table = mean_C.new_zeros(dist.get_world_size(), 2 * width + 1)
        table[dist.get_rank()] = torch.cat([mean_C, variance_C, mean_C.new_tensor([x_BCHW.numel() / x_BCHW.shape[1]])])
        dist.all_reduce(table)
        means_RC, variances_RC, counts_R1 = table[:, :width], table[:, width:-1], table[:, -1:]
        shares_R1 = counts_R1 / counts_R1.sum()
        mean_C = (shares_R1 * means_RC).sum(0)
        # not E[x^2] - mean^2, which cancels
        variance_C = (shares_R1 * (variances_RC + (means_RC - mean_C).square())).sum(0)
        inverse_C = torch.rsqrt(variance_C + eps)
        ctx.save_for_backward(x_BCHW, weight_C, mean_C, inverse_C, counts_R1.sum())
        return ((x_BCHW - _wide(mean_C)) * _wide(weight_C * inverse_C) + _wide(bias_C)).to(x_BCHW.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BCHW, weight_C, mean_C, inverse_C, count = ctx.saved_tensors
        grad_BCHW, normal_BCHW = grads[0].float(), (x_BCHW - _wide(mean_C)) * _wide(inverse_C)
        own_2C = torch.stack([grad_BCHW.sum((0, 2, 3)), (grad_BCHW * normal_BCHW).sum((0, 2, 3))])
        total_2C = own_2C.clone()
        dist.all_reduce(total_2C)
        bias_C, slope_C = total_2C / count
        dx_BCHW = _wide(weight_C * inverse_C) * (grad_BCHW - _wide(bias_C) - normal_BCHW * _wide(slope_C))
        return dx_BCHW.to(x_BCHW.dtype), own_2C[1], own_2C[0], None


def _wide(numbers_C: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1): one number per channel of a map."""
    return numbers_C[:, None, None]


def batch_norm(config: ModelConfig, num_features: int) -> BatchNorm2d:
    """The layer that `model.batch_norm` selects."""
    if config.batch_norm == "sync":
        return SyncBatchNorm2d(num_features, EPS)
    return BatchNorm2d(num_features, EPS, config.batch_norm_group if config.batch_norm == "group" else None)
