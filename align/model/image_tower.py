"""EfficientNet with global pooling and without its head's 1x1 convolution (paper section 4.1).

Its shapes, and the names in its state dict, are those of transformers' `AlignVisionModel`. The parts that do not work
there for training differ:

* batch-norm works in groups of 16 samples, independent of batch, ranks and micro-batches;
* stochastic depth drops a residual branch per sample (upstream has element-wise dropout);
* convolutions start from variance scaling (fan-out, 2.0; a depthwise fan-out is divided by its groups), and batch-norm
  scales start from 1;
* depthwise convolution has a backward pass that is fast on CPUs;
* the backward pass may compute batch-norm, SiLU and squeeze-excite again, or whole blocks: this tower holds most of a
  step's activations.

Decision (the paper is silent): running statistics are not tracked during training. They are estimated afterwards from
training images (`estimate_statistics`), so they depend neither on momentum nor on how a batch was divided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from align.config.model import Checkpointing, ImageTowerShape, ModelConfig
from align.model.batch_norm import BatchNorm2d, batch_norm
from align.model.mbconv import BlockShape, MBConv
from align.model.presets import image_shape, scaled

#: EfficientNet-B0's stages (Tan & Le, ICML 2019, table 1), each with equal blocks except for the first one's stride:
#: number of blocks, channels, kernel size of the depthwise convolutions, stride, expansion.
_STAGES = (
    (1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6), (3, 112, 5, 1, 6), (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)  # fmt: skip
_STEM_CHANNELS = 32


class ImageTower(nn.Module):
    """EfficientNet: pixels -> pooled features of the last MBConv stage.

    Attributes:
        width: channels of the pooled features (320 for B0 and B1, 640 for B7, 1376 for L2).
        num_blocks: number of MBConv blocks, and so of stochastic-depth draws per sample.
        gradient_checkpointing: what the backward pass of training computes again instead of keeping it. `cheap`:
            batch-norm, SiLU and squeeze-excite; `blocks`: whole blocks; only their input is kept.
    """

    _rates: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = _Stem(config)
        self.encoder = _Encoder(config)
        # A seed gives the same weights as when this tower was made of transformers' modules: all convolutions were
        # drawn, the depthwise ones were replaced, and all were drawn again. Only the last draw counts; the others
        # advance the generator.
        initialise(self)
        self._blocks = cast(list[MBConv], list(self.encoder.blocks))
        for block in self._blocks:
            block.depthwise_conv.depthwise_conv.reset_parameters()
        initialise(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch types no such overload
        self.num_blocks = len(self._blocks)
        self.gradient_checkpointing: Checkpointing = "none"
        rates = torch.tensor([block.drop_rate for block in self._blocks])
        self.register_buffer("_rates", rates, persistent=False)
        self.width = self._blocks[-1].projection.project_conv.out_channels

    def forward(self, pixels: Tensor, draws: Tensor | None = None) -> Tensor:
        """Pixels to features.

        Args:
            pixels: (B, 3, H, W), values in [-1, 1].
            draws: (B, num_blocks) uniform numbers in [0, 1) for stochastic depth; None drops nothing.

        Returns:
            (B, width) features.
        """
        again = self.gradient_checkpointing == "blocks" and self.training and torch.is_grad_enabled()
        hidden: Tensor = self.embeddings(pixels)
        for block, keep in zip(self._blocks, self._keep(draws), strict=True):
            block.keeps_convolutions = self.gradient_checkpointing == "cheap"
            if again:
                hidden = checkpoint(block, hidden, keep, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = block(hidden, keep)
        return hidden.mean(dim=(2, 3))

    def _keep(self, draws: Tensor | None) -> Sequence[Tensor | None]:
        """What `MBConv` takes as `keep`, for all blocks by a few operations."""
        if draws is None or not self.training:
            return [None] * self.num_blocks
        rates_K = self._rates.to(draws.dtype)
        keep_KB = ((draws >= rates_K).to(draws.dtype) / (1.0 - rates_K)).t().contiguous()
        return [keep if block.drop_rate else None for block, keep in zip(self._blocks, keep_KB.unbind(), strict=True)]


class _Stem(nn.Module):
    """The first convolution; its last row and column of zeros are TensorFlow's SAME padding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = scaled(_STEM_CHANNELS, image_shape(config))
        self.convolution = nn.Conv2d(3, width, 3, stride=2, bias=False)
        self.batchnorm = batch_norm(config, width)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.silu(self.batchnorm(self.convolution(F.pad(pixels, (0, 1, 0, 1)))))


class _Encoder(nn.Module):
    """Holds the blocks under the names that checkpoints have."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MBConv(config, shape) for shape in _block_shapes(config))


def _block_shapes(config: ModelConfig) -> list[BlockShape]:
    """Compound scaling: all channels times the width coefficient, all numbers of blocks times the depth coefficient."""
    scale, found = image_shape(config), list[BlockShape]()
    total = sum(math.ceil(scale.depth_coefficient * stage[0]) for stage in _STAGES)
    channels = scaled(_STEM_CHANNELS, scale)
    for num_blocks, wanted, kernel_size, first_stride, expansion in _STAGES:
        for number in range(math.ceil(scale.depth_coefficient * num_blocks)):
            before, channels = channels, scaled(wanted, scale)
            stride, drop_rate = 1 if number else first_stride, config.stochastic_depth * len(found) / total
            found.append(BlockShape(before, channels, kernel_size, stride, expansion, drop_rate, adds=number > 0))
    return found


def places(scale: ImageTowerShape) -> list[tuple[int, int]]:
    """Of each block, its stage and its number in it."""
    return [
        (stage, number)
        for stage, (num_blocks, *_) in enumerate(_STAGES)
        for number in range(math.ceil(scale.depth_coefficient * num_blocks))
    ]


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
    tower: nn.Module, batches: Iterable[Tensor], sum_over_ranks: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Sets the running statistics to the mean of the batch statistics over groups (variance unbiased).

    Args:
        tower: its mode is restored afterwards; parameters do not change.
        batches: pixels (B, 3, H, W); a batch is a multiple of the batch-norm group.
        sum_over_ranks: adds up a tensor over the ranks, which have some of the batches or none; None: this rank has
            all, and no messages are sent.
    """
    norms = [module for module in tower.modules() if isinstance(module, BatchNorm2d)]
    if not norms:
        return
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
