"""timm's names of an EfficientNet's layers, and ours: both ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

#: timm's name of a layer -> ours. A block of the first stage has no expansion, so its layers have other numbers.
_STEM = {"conv_stem": "convolution", "bn1": "batchnorm"}
_FIRST = {
    "conv_dw": "depthwise_conv.depthwise_conv", "bn1": "depthwise_conv.depthwise_norm",
    "conv_pw": "projection.project_conv", "bn2": "projection.project_bn",
}  # fmt: skip
_LATER = {
    "conv_pw": "expansion.expand_conv", "bn1": "expansion.expand_bn",
    "conv_dw": "depthwise_conv.depthwise_conv", "bn2": "depthwise_conv.depthwise_norm",
    "conv_pwl": "projection.project_conv", "bn3": "projection.project_bn",
}  # fmt: skip
_GATE = {"se.conv_reduce": "squeeze_excite.reduce", "se.conv_expand": "squeeze_excite.expand"}
#: What follows the last block.
HEAD = ("conv_head.", "bn2.", "classifier.")
_BLOCK = re.compile(r"blocks\.(\d{1,3})\.(\d{1,3})\.(\w+(?:\.\w+)?)\.(\w+)")


def our_names(theirs: Mapping[str, T]) -> dict[str, T]:
    """timm's state dict, without what follows the last block, under our names; one that timm does not have stays."""
    blocks = sorted({(int(match[1]), int(match[2])) for name in theirs if (match := _BLOCK.fullmatch(name))})
    number = {block: index for index, block in enumerate(blocks)}
    return {_our_name(name, number): value for name, value in theirs.items()}


def _our_name(name: str, number: Mapping[tuple[int, int], int]) -> str:
    if match := _BLOCK.fullmatch(name):
        stage, layer = int(match[1]), match[3]
        ours = (_LATER if stage else _FIRST).get(layer) or _GATE.get(layer)
        return f"encoder.blocks.{number[stage, int(match[2])]}.{ours}.{match[4]}" if ours else name
    layer, _, kind = name.partition(".")
    return f"embeddings.{_STEM[layer]}.{kind}" if layer in _STEM else name


def their_names(ours: Mapping[str, T], places: Sequence[tuple[int, int]]) -> dict[str, T]:
    """The state dict of our tower under timm's names; `places` has the stage of each block, and its number in it."""
    return {_their_name(name, places): value for name, value in ours.items()}


def _their_name(name: str, places: Sequence[tuple[int, int]]) -> str:
    layer, _, kind = name.rpartition(".")
    if layer.startswith("embeddings."):
        return f"{_turned(_STEM)[layer.removeprefix('embeddings.')]}.{kind}"
    _, _, number, layer = layer.split(".", 3)
    stage, place = places[int(number)]
    return f"blocks.{stage}.{place}.{_turned((_LATER if stage else _FIRST) | _GATE)[layer]}.{kind}"


def _turned(names: Mapping[str, str]) -> dict[str, str]:
    return {ours: theirs for theirs, ours in names.items()}
