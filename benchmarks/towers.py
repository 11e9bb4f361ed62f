"""Forward and backward of the towers against the same architecture elsewhere; runs in the environment of the peers.

Peers are the towers of transformers' AlignModel, and timm's EfficientNet (without its head, which ALIGN does not have)
with transformers' BERT. All are in training mode on the same pixels and texts, padded to the longest text, and have
neither dropout nor stochastic depth; initial weights are each library's own. Ours has batch-norm in groups of 16,
theirs over the batch; ours also projects and normalises, and computes hardly any of the padding. timm is shown in both
layouts of memory: its own, and the one that its `--channels-last` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from timm.models.efficientnet import _gen_efficientnet
from torch import Tensor, nn
from transformers import AlignTextModel, AlignVisionModel, BertConfig, BertModel

from align.config.model import ModelConfig
from align.display.console import say
from align.model.preprocess import to_pixels
from align.model.presets import image_shape
from align.model.tokenizer import pad
from align.release.exchange.interchange import align_config
from benchmarks.measure import Comparison, compare, in_process, interleaved
from benchmarks.presets import PRESETS, Preset, preset, recipe
from benchmarks.world import World

BATCH_SIZE = 64
REPETITIONS = 5


class Towers(NamedTuple):
    """Pixels (B, 3, H, W) to features, ids and mask (B, T) to features."""

    image: Callable[[Tensor], Tensor]
    text: Callable[[Tensor, Tensor], Tensor]


Batch = tuple[Tensor, Tensor, Tensor]


def ours(some: Preset) -> Towers:
    model = some.model()
    return Towers(model.encode_image, model.encode_text)


def align_in_transformers(some: Preset) -> Towers:
    config = _in_transformers(some)
    image_tower, text_tower = AlignVisionModel(config.vision_config).train(), AlignTextModel(config.text_config).train()
    return Towers(lambda pixels: image_tower(pixels).pooler_output, _first_hidden(text_tower))


def timm_and_bert(some: Preset, memory_format: torch.memory_format = torch.contiguous_format) -> Towers:
    image_tower: nn.Module = efficientnet(some.config).to(memory_format=memory_format).train()
    text = _in_transformers(some).text_config.to_dict()
    text_tower = BertModel(BertConfig(**{name: text[name] for name in _TEXT})).train()
    return Towers(lambda pixels: image_tower(pixels.contiguous(memory_format=memory_format)), _first_hidden(text_tower))


_TEXT = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob",
)  # fmt: skip


def _in_transformers(some: Preset) -> Any:
    return align_config(some.config, some.tokenizer.vocab_size, some.model().vision_model.width)


def _first_hidden(text_tower: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda ids, mask: text_tower(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]


def efficientnet(config: ModelConfig) -> nn.Module:
    """timm's, pooled, without the 1x1 convolution before the pooling."""
    shape = image_shape(config)
    if (shape.width_coefficient, shape.depth_coefficient) == (1.0, 1.0):
        tower = timm.create_model("efficientnet_b0", num_classes=0)
    else:  # what `create_model` calls with the coefficients of a name
        tower = _gen_efficientnet("efficientnet_b0", shape.width_coefficient, shape.depth_coefficient, num_classes=0)
    tower.conv_head, tower.bn2 = nn.Identity(), nn.Identity()
    return tower


PEERS: dict[str, Callable[[Preset], Towers]] = {
    "the towers of transformers' AlignModel": align_in_transformers,
    "timm's EfficientNet and transformers' BERT": timm_and_bert,
    "timm's EfficientNet, channels last, and transformers' BERT": lambda some: timm_and_bert(some, torch.channels_last),
}


def both(towers: Towers, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    (towers.image(pixels).square().sum() + towers.text(ids, mask).square().sum()).backward()


def image_alone(towers: Towers, pixels: Tensor, ids: Tensor, mask: Tensor) -> None:
    towers.image(pixels).square().sum().backward()


def run(world: World) -> list[Comparison]:
    rows = []
    for name in PRESETS:
        say(f"benchmark: towers and their peers, {name}")
        some = preset(world, name)
        batch = _batch(world, some)
        assert _size(some.model().vision_model) == _size(efficientnet(some.config))
        mine, mine_peak = ours(some), in_process(_alone, world, name, None)[1]
        for peer, build in PEERS.items():
            their, their_peak = build(some), in_process(_alone, world, name, peer)[1]
            for what, function in (("both towers", both), ("image tower alone", image_alone)):
                ours_s, theirs_s = interleaved(
                    lambda function=function, mine=mine, batch=batch: function(mine, *batch),
                    lambda function=function, their=their, batch=batch: function(their, *batch), REPETITIONS,
                )  # fmt: skip
                memory = f"; peak memory {mine_peak >> 20:,} against {their_peak >> 20:,} MiB"
                rows.append(
                    compare(
                        f"{what}, {name}, {some.config.image_px} px, forward + backward", peer, "pairs / CPU s",
                        items=BATCH_SIZE, ours_s=ours_s, theirs_s=theirs_s,
                        note=f"batch {BATCH_SIZE}{memory if function is both else ''}",
                    )
                )  # fmt: skip
    return rows


def _batch(world: World, some: Preset) -> Batch:
    batch = some.loader(recipe(world, num_steps=1, batch_size=BATCH_SIZE)).batch(0)
    return (to_pixels(batch.images), *pad(some.tokenizer.ids(batch.texts), some.tokenizer.pad_id))


def _size(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def _alone(world: World, name: str, peer: str | None) -> None:
    torch.set_num_threads(1)
    some = preset(world, name)
    towers = PEERS[peer](some) if peer else ours(some)
    for _ in range(2):
        both(towers, *_batch(world, some))
