"""The published shapes: parameters and widths as in the paper, without a byte of weights (torch's meta device)."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from align.config.model import ImageTowerName, ModelConfig, TextTowerName
from align.config.params import Params
from align.errors import ConfigError
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import ImageTower
from align.model.presets import IMAGE_TOWERS, TEXT_TOWERS, named_image_tower, named_text_tower
from tests.support.training_data import MODEL


def config(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(MODEL.model_dump() | changes)


def millions(module: nn.Module) -> float:
    return sum(param.numel() for param in module.parameters()) / 1e6


#: Pooled width and, where the paper's towers are meant, parameters in millions.
IMAGE = {
    "B0": (320, None), "B1": (320, 6.10), "B2": (352, None), "B3": (384, 10.10), "B4": (448, None), "B5": (512, 27.29),
    "B6": (576, None), "B7": (640, 62.14), "L2": (1376, 467.22),
}  # fmt: skip

#: Parameters in millions, without pooler, at 100k words and BERT's 512 positions.
TEXT = {"Mini": 28.89, "Small": 64.07, "Medium": 76.68, "Base": 162.25, "Large": 405.24}


@pytest.mark.parametrize("name", get_args(ImageTowerName))
def test_image_towers_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        tower = ImageTower(config(image_tower=name))
    width, size = IMAGE[name]
    assert tower.width == width
    assert size is None or millions(tower) == pytest.approx(size, abs=0.005)


@pytest.mark.parametrize("name", get_args(TextTowerName))
def test_text_towers_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = DualEncoder(config(text_tower=name, max_tokens=512), vocab_size=100_000)
    assert millions(model.text_model) == pytest.approx(TEXT[name], abs=0.005)


@pytest.mark.parametrize(("image", "text", "width"), [("L2", "Large", 1376), ("B7", "Base", 640), ("B0", "Mini", 320)])
def test_native_widths_need_no_image_projection_and_others_get_one(image: str, text: str, width: int) -> None:
    for wanted in (width, 640, 100):
        with torch.device("meta"):
            model = DualEncoder(config(image_tower=image, text_tower=text, embed_width=wanted), 50)
        assert isinstance(model.vision_projection, nn.Identity) == (wanted == width)
        if isinstance(model.vision_projection, nn.Linear):
            assert tuple(model.vision_projection.weight.shape) == (wanted, width)
        assert model.text_projection.weight.shape[0] == wanted


def test_a_shape_finds_its_name() -> None:
    assert [named_image_tower(shape) for shape in IMAGE_TOWERS.values()] == list(get_args(ImageTowerName))
    assert [named_text_tower(shape) for shape in TEXT_TOWERS.values()] == list(get_args(TextTowerName))
    own = IMAGE_TOWERS["B0"].model_copy(update={"width_coefficient": 0.3})
    assert named_image_tower(own) == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_tower": "B9"}, r"model\.image_tower\.name' = 'B9': Input should be 'B0'"),
        ({"image_tower": {"width_coefficient": 1.0}}, r"model\.image_tower\.shape\.depth_coefficient' is missing"),
        ({"image_tower": None}, r"model\.image_tower\.shape'"),
        ({"text_tower": {"width": 16, "layers": 1, "heads": 3}}, "width 16 is not a multiple of heads 3"),
        ({"text_tower": {"width": 16, "layers": 1, "heads": 2, "depth": 2}}, r"unknown parameter.*text_tower.*depth"),
        ({"batch_norm": "rank"}, r"model\.batch_norm' = 'rank'"),
    ],
)
def test_a_wrong_tower_is_one_clear_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Params({"model": MODEL.model_dump() | changes}, Path("params.yaml")).section(ModelConfig)
