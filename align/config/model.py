"""The shape of the dual encoder and its input sizes; shared by every stage that builds or loads a model."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from align.config.params import Section, Strict

#: Names of published shapes; their numbers are in `align.model.presets`.
ImageTowerName = Literal["B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "L2"]
TextTowerName = Literal["Mini", "Small", "Medium", "Base", "Large"]

#: A model of timm by its name there, with or without a tag: timm:vit_small_patch16_224.augreg_in1k
TIMM: Final = "timm:"
TimmName = Annotated[str, Field(pattern=rf"^{TIMM}\w+(\.\w+)?$")]

#: What the backward pass computes again instead of keeping it: batch-norm, SiLU and squeeze-excite, or whole blocks.
Checkpointing = Literal["none", "cheap", "blocks"]

#: The tower that training leaves as it is.
Locked = Literal["none", "image", "text"]


class ImageTowerShape(Strict):
    """EfficientNet's compound scaling of width and depth; B0 has 1.0 for both."""

    width_coefficient: float = Field(gt=0)
    depth_coefficient: float = Field(gt=0)


class TextTowerShape(Strict):
    """BERT's hidden size, layers and attention heads."""

    width: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TransformersTower(Strict):
    """A text encoder of transformers: what its config.json has. Keys that it lacks have transformers' defaults."""

    config: dict[str, Any]
    #: The text is the first token's output, as BERT's; the last one's, as SigLIP's and CLIP's; or the mean of all.
    pooling: Literal["first", "last", "mean"] = "first"

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.config.get("model_type"):
            raise ValueError("config needs a model_type of transformers, such as bert or siglip_text_model")
        return self


def _kind(value: object) -> str:
    """Selects the type as which a value is validated, so that an error is only about that type."""
    if isinstance(value, str):
        return "timm" if value.startswith(TIMM) else "name"
    has_config = isinstance(value, TransformersTower) or (isinstance(value, dict) and "config" in value)
    return "transformers" if has_config else "shape"


class ModelConfig(Section):
    """Shape of the dual encoder. Every model's config.json contains it, so a model folder describes itself."""

    section: ClassVar[str] = "model"

    resize_px: int = Field(ge=32, le=4096)  # a folder of others may name any; 4096 squared is a picture of 48 MiB
    image_px: int = Field(ge=32)  # five halvings
    image_tower: Annotated[
        Annotated[ImageTowerName, Tag("name")]
        | Annotated[TimmName, Tag("timm")]
        | Annotated[ImageTowerShape, Tag("shape")],
        Discriminator(_kind),
    ]
    stochastic_depth: float = Field(ge=0, lt=1)
    #: Samples that share batch statistics in training.
    batch_norm_group: int = Field(ge=1)
    text_tower: Annotated[
        Annotated[TextTowerName, Tag("name")]
        | Annotated[TransformersTower, Tag("transformers")]
        | Annotated[TextTowerShape, Tag("shape")],
        Discriminator(_kind),
    ]
    max_tokens: int = Field(ge=4, le=512)
    embed_width: int = Field(ge=8)
    temperature_init: float = Field(gt=0)
    #: For the sigmoid loss; None: the model has no bias.
    logit_bias_init: float | None

    @property
    def libraries(self) -> tuple[str, ...]:
        """The packages that build its towers, besides torch."""
        timm = ("timm",) if isinstance(self.image_tower, str) and self.image_tower.startswith(TIMM) else ()
        return (*timm, "transformers") if isinstance(self.text_tower, TransformersTower) else timm

    @property
    def versions(self) -> tuple[str, ...]:
        """Of these packages: what their towers compute is up to them. One that is not installed is left out."""
        return tuple(version(name) for name in self.libraries if find_spec(name))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.image_px > self.resize_px:
            raise ValueError(
                f"image_px {self.image_px} is larger than resize_px {self.resize_px}, which it is cropped from"
            )
        return self
