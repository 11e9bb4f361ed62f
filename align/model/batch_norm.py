"""Batch-norm of three kinds: over groups of samples, over a rank's batch, over the batches of all ranks.

The paper is silent. `group` is the default: 16 samples, one TPU core's share, so that the result depends on neither
batch, ranks nor micro-batches. `batch` is plain batch-norm, `sync` what `torch.nn.SyncBatchNorm` computes, which torch
has for GPUs only; here it runs on any device.

Names and shapes in the state dict are those of `nn.BatchNorm2d`. Decision: no kind tracks running statistics in
training; they are estimated afterwards (`align.model.image_tower.estimate_statistics`), so they depend on no momentum.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from align.config.model import ModelConfig


class BatchNorm2d(nn.BatchNorm2d):
    """Batch-norm over groups of consecutive samples in training; running statistics in evaluation.

    A training batch is a multiple of the group, or smaller than one group; everything else raises ValueError.

    Attributes:
        group: samples that share statistics; None for the whole batch.
        collecting: whether training-mode batches add to the running statistics.
    """

    def __init__(self, num_features: int, eps: float, group: int | None) -> None:
        super().__init__(num_features, eps=eps, momentum=0.0)
        self.group = group
        self.collecting = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        group = self.group or len(x)
        if len(x) > group and len(x) % group:
            raise ValueError(f"a training batch of {len(x)} is no multiple of the batch-norm group {group}")
        groups = torch.split(x, group)
        normal = [F.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps) for part in groups]
        if self.collecting:
            for part in groups:
                self._collect(part)
        return normal[0] if len(normal) == 1 else torch.cat(normal)

    @torch.no_grad()
    def _collect(self, part: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked)
        variance, mean = torch.var_mean(part.float(), dim=(0, 2, 3))
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class SyncBatchNorm2d(BatchNorm2d):
    """Batch-norm over the batches of all ranks of torch's default process group; without one, over the batch.

    In training every rank must call it the same number of times. Without gradients it speaks to nobody, since one rank
    alone collects statistics and looks at how well they fit.
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
    """Keeps the input and two numbers a channel for backward; each pass is one message of a few numbers a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        # each rank fills its own row of a table of zeros, so that one sum brings everyone every rank's moments
        table = mean.new_zeros(dist.get_world_size(), 2 * len(mean) + 1)
        table[dist.get_rank()] = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        dist.all_reduce(table)
        means, variances, counts = table[:, : len(mean)], table[:, len(mean) : -1], table[:, -1:]
        shares = counts / counts.sum()
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)  # not E[x^2] - mean^2, which cancels
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse, counts.sum())
        return ((x - _wide(mean)) * _wide(weight * inverse) + _wide(bias)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        grad, normal = grads[0].float(), (x - _wide(mean)) * _wide(inverse)
        own = torch.stack([grad.sum((0, 2, 3)), (grad * normal).sum((0, 2, 3))])
        total = own.clone()
        dist.all_reduce(total)
        grad_bias, grad_weight = total / count
        grad_x = _wide(weight * inverse) * (grad - _wide(grad_bias) - normal * _wide(grad_weight))
        return grad_x.to(x.dtype), own[1], own[0], None


def _wide(numbers: Tensor) -> Tensor:
    """(C,) -> (C, 1, 1): one number a channel of a map."""
    return numbers[:, None, None]


def batch_norm(config: ModelConfig, num_features: int, eps: float) -> BatchNorm2d:
    """The layer that `model.batch_norm` asks for."""
    if config.batch_norm == "sync":
        return SyncBatchNorm2d(num_features, eps)
    return BatchNorm2d(num_features, eps, config.batch_norm_group if config.batch_norm == "group" else None)
