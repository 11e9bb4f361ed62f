"""timm's names of an EfficientNet's layers, and ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Our name of a layer -> timm's. A block of the first stage has no expansion, so its layers have other numbers.
_STEM = {"convolution": "conv_stem", "batchnorm": "bn1"}
_GATE = {"squeeze_excite.reduce": "se.conv_reduce", "squeeze_excite.expand": "se.conv_expand"}
_FIRST = _GATE | {
    "depthwise_conv.depthwise_conv": "conv_dw", "depthwise_conv.depthwise_norm": "bn1",
    "projection.project_conv": "conv_pw", "projection.project_bn": "bn2",
}  # fmt: skip
_LATER = _GATE | {
    "expansion.expand_conv": "conv_pw", "expansion.expand_bn": "bn1",
    "depthwise_conv.depthwise_conv": "conv_dw", "depthwise_conv.depthwise_norm": "bn2",
    "projection.project_conv": "conv_pwl", "projection.project_bn": "bn3",
}  # fmt: skip


def their_names(ours: Iterable[str], places: Sequence[tuple[int, int]]) -> dict[str, str]:
    """Each name in the state dict of our tower -> timm's; `places` has the stage and number of each block."""
    found = {}
    for name in ours:
        layer, _, kind = name.rpartition(".")
        if layer.startswith("embeddings."):
            found[name] = f"{_STEM[layer.removeprefix('embeddings.')]}.{kind}"
        else:
            _, _, number, layer = layer.split(".", 3)
            stage, place = places[int(number)]
            found[name] = f"blocks.{stage}.{place}.{(_LATER if stage else _FIRST)[layer]}.{kind}"
    return found
