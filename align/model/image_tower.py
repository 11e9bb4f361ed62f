"""EfficientNet with global pooling and without its head's 1x1 convolution (paper section 4.1).

Built on the modules of transformers' `AlignVisionModel`, so that checkpoints keep its names. What does not work there
for training is replaced:

* batch-norm works in groups of 16 samples, independent of batch, ranks and micro-batches, or in the other ways of
  `align.model.batch_norm`;
* stochastic depth drops a residual branch per sample (upstream has element-wise dropout);
* convolutions start from variance scaling (fan-out, 2.0; a depthwise fan-out is divided by its groups), and batch-norm
  scales start from 1;
* depthwise convolution has a backward pass that is fast on CPUs;
* batch-norm, SiLU and squeeze-excite are joined to the convolutions (`align.model.mbconv`), and may be computed again
  in the backward pass, as may whole blocks: this tower holds most of a step's activations.

Decision (the paper is silent): running statistics are not tracked during training. They are estimated afterwards from
training images (`estimate_statistics`), so they depend neither on momentum nor on how a batch was divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AlignVisionConfig, AlignVisionModel
from transformers.models.align.modeling_align import AlignVisionDepthwiseConv2d

from align.config.model import Checkpointing, ModelConfig
from align.model.batch_norm import BatchNorm2d, batch_norm, normalised
from align.model.depthwise import DepthwiseConv2d
from align.model.mbconv import MBConv
from align.model.presets import image_shape


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
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training or self.keep is None:
            return x
        return x * self.keep.to(x.dtype)[:, None, None, None]


class ImageTower(nn.Module):
    """EfficientNet: pixels -> pooled features of the last MBConv stage.

    Attributes:
        width: channels of the pooled features (320 for B0 and B1, 640 for B7, 1376 for L2).
        num_blocks: number of MBConv blocks, and so of stochastic-depth draws per sample.
        gradient_checkpointing: what the backward pass of training computes again instead of keeping it. `cheap`:
            batch-norm, SiLU and squeeze-excite; `blocks`: whole blocks, of which only the input is kept.
    """

    _rates: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        upstream = AlignVisionModel(vision_config(config))
        self.embeddings = upstream.embeddings
        self.encoder = upstream.encoder
        _repair(self, config)
        blocks = self.encoder.blocks
        for index, block in enumerate(blocks):
            blocks[index] = MBConv(block)
        initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types no such overload
        self._blocks: list[Any] = list(self.encoder.blocks)
        self.num_blocks = len(self._blocks)
        self.gradient_checkpointing: Checkpointing = "none"
        rates = torch.tensor([block.projection.dropout.rate for block in self._blocks])
        self.register_buffer("_rates", rates, persistent=False)
        self.width = int(self._blocks[-1].projection.project_conv.out_channels)

    def forward(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Pixels to features.

        Args:
            pixels: (B, 3, H, W), values in [-1, 1].
            draws: (B, num_blocks) uniform numbers in [0, 1) for stochastic depth; None drops nothing.

        Returns:
            (B, width) features.
        """
        again = self.gradient_checkpointing == "blocks" and self.training and torch.is_grad_enabled()
        hidden = self._stem(pixels)
        for block, keep in zip(self._blocks, self._keep(draws), strict=True):
            block.again = self.gradient_checkpointing == "cheap"
            if again:
                hidden = checkpoint(_run, block, hidden, keep, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = _run(block, hidden, keep)
        return hidden.mean(dim=(2, 3))

    def _stem(self, pixels: Tensor) -> Tensor:
        stem: Any = self.embeddings
        if type(stem.batchnorm) is BatchNorm2d and stem.batchnorm.training:
            return normalised(stem.convolution(stem.padding(pixels)), stem.batchnorm, silu=True)
        return cast(Tensor, stem(pixels))

    def _keep(self, draws: Tensor | None) -> Sequence[Tensor | None]:
        """Of each block, what `StochasticDepth` wants: all blocks' by a few operations."""
        if draws is None or not self.training:
            return [None] * self.num_blocks
        rates_K = self._rates.to(draws.dtype)
        keep_KB = ((draws >= rates_K).to(draws.dtype) / (1.0 - rates_K)).t().contiguous()
        dropout = (block.projection.dropout for block in self._blocks)
        return [keep if layer.rate else None for layer, keep in zip(dropout, keep_KB.unbind(), strict=True)]


def _run(block: Any, hidden: Tensor, keep: Tensor | None) -> Tensor:
    """One block. Each call sets `keep`, since a block may be recomputed after another batch has set its own."""
    block.projection.dropout.keep = keep
    return cast(Tensor, block(hidden))


def vision_config(config: ModelConfig) -> AlignVisionConfig:
    """The transformers configuration of the same architecture."""
    shape = image_shape(config)
    return AlignVisionConfig(
        image_size=config.image_px,
        width_coefficient=float(shape.width_coefficient),  # upstream refuses whole numbers
        depth_coefficient=float(shape.depth_coefficient),
        drop_connect_rate=float(config.stochastic_depth),
    )


def _repair(module: nn.Module, config: ModelConfig) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, batch_norm(config, child.num_features, child.eps))
        elif isinstance(child, nn.Dropout):
            setattr(module, name, StochasticDepth(child.p))
        elif isinstance(child, AlignVisionDepthwiseConv2d):
            setattr(module, name, DepthwiseConv2d(child.in_channels, child.kernel_size[0], child.stride[0]))
        elif isinstance(child, nn.ZeroPad2d) and name == "depthwise_conv_pad":
            setattr(module, name, nn.Identity())
        else:
            _repair(child, config)


def initialise(module: nn.Module) -> None:
    """EfficientNet's initialisation, from torch's global generator: normal with variance 2 / fan-out, biases 0."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan_out = child.out_channels * child.kernel_size[0] * child.kernel_size[1] / child.groups
            nn.init.normal_(child.weight, std=math.sqrt(2.0 / fan_out))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            child.reset_parameters()


@torch.no_grad()
def estimate_statistics(
    tower: ImageTower, batches: Iterable[Tensor], sum_over_ranks: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Sets the running statistics to the mean of the batch statistics over groups (variance unbiased).

    A group is that of batch-norm, or a whole batch for its other kinds.

    Args:
        tower: its mode is restored afterwards; parameters do not change.
        batches: pixels (B, 3, H, W); a batch is a multiple of the batch-norm group.
        sum_over_ranks: adds up a tensor over the ranks, each of which has some of the batches or none; None: this one
            has all, and no messages are sent.
    """
    norms = [module for module in tower.modules() if isinstance(module, BatchNorm2d)]
    was_training = tower.training
    tower.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.collecting = True
    try:
        for pixels in batches:
            tower(pixels)
    finally:
        for norm in norms:
            norm.collecting = False
        tower.train(was_training)
    if sum_over_ranks is not None:
        _pool(norms, sum_over_ranks)


def _pool(norms: Sequence[BatchNorm2d], sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
    """Each rank's mean over its groups -> the mean over all groups, in one message."""
    own = [norm.statistics() for norm in norms]
    rows = [torch.cat([mean, variance, count.new_ones(1)]).double() * count for mean, variance, count in own]
    totals = torch.split(sum_over_ranks(torch.cat(rows)), [len(row) for row in rows])
    for (mean, variance, count), total in zip(own, totals, strict=True):
        pooled = total[:-1] / total[-1]
        mean.copy_(pooled[: len(mean)])
        variance.copy_(pooled[len(mean) :])
        count.copy_(total[-1])
