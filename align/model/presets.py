"""The published shapes of both towers, by name.

Image: EfficientNet's width and depth coefficients. B0 to B7 from Tan & Le, "EfficientNet", ICML 2019 (arXiv
1905.11946), as in its code; L2 from Xie et al., "Self-training with Noisy Student", CVPR 2020 (arXiv 1911.04252).

Text: BERT's hidden size, layers and heads. Base and Large from Devlin et al., NAACL 2019 (arXiv 1810.04805); Mini,
Small and Medium from Turc et al., "Well-Read Students Learn Better" (arXiv 1908.08962). Heads are 64 wide throughout.

The paper's main model is L2 with Large (section 4.1), its ablations are B1, B3, B5, B7 and L2 with Mini, Base and Large
(6.1). Input sizes are not part of a preset: ALIGN uses 289 px for all.
"""

from __future__ import annotations

from typing import Any

from align.config.model import TIMM, ImageTowerName, ImageTowerShape, ModelConfig, TextTowerName, TextTowerShape
from align.errors import DataError

#: (width coefficient, depth coefficient)
_EFFICIENTNET: dict[ImageTowerName, tuple[float, float]] = {
    "B0": (1.0, 1.0),
    "B1": (1.0, 1.1),
    "B2": (1.1, 1.2),
    "B3": (1.2, 1.4),
    "B4": (1.4, 1.8),
    "B5": (1.6, 2.2),
    "B6": (1.8, 2.6),
    "B7": (2.0, 3.1),
    "L2": (4.3, 5.3),
}

#: (hidden size, layers, heads)
_BERT: dict[TextTowerName, tuple[int, int, int]] = {
    "Mini": (256, 4, 4),
    "Small": (512, 4, 8),
    "Medium": (512, 8, 8),
    "Base": (768, 12, 12),
    "Large": (1024, 24, 16),
}

IMAGE_TOWERS = {
    name: ImageTowerShape(width_coefficient=width, depth_coefficient=depth)
    for name, (width, depth) in _EFFICIENTNET.items()
}
TEXT_TOWERS = {
    name: TextTowerShape(width=width, layers=layers, heads=heads) for name, (width, layers, heads) in _BERT.items()
}


def image_shape(config: ModelConfig) -> ImageTowerShape:
    """The coefficients of the image tower, which the config names or gives. Raises DataError: it is of timm."""
    tower = config.image_tower
    if isinstance(tower, str) and tower.startswith(TIMM):
        raise DataError(f"image tower {tower} is not ALIGN's: this format cannot hold it; use onnx")
    return IMAGE_TOWERS[tower] if isinstance(tower, str) else tower  # type: ignore[index]  # a name of ours


def scaled(channels: int, scale: ImageTowerShape) -> int:
    """A layer's channels: the nearest multiple of 8, or the next one if that is less than nine tenths of the number."""
    wanted = channels * scale.width_coefficient
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest


def text_shape(config: ModelConfig) -> TextTowerShape:
    """The sizes of the text tower, which the config names or gives. Raises DataError: it is of transformers."""
    tower = config.text_tower
    if not isinstance(tower, str | TextTowerShape):
        kind = tower.config["model_type"]
        raise DataError(f"text tower {kind} is not ALIGN's BERT: this format cannot hold it; use onnx")
    return TEXT_TOWERS[tower] if isinstance(tower, str) else tower


def named(shape: ImageTowerShape | TextTowerShape) -> Any:
    """The name of a shape, or the shape itself if it has none."""
    return next((name for name, known in (*IMAGE_TOWERS.items(), *TEXT_TOWERS.items()) if known == shape), shape)
