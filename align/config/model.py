"""The dual encoder's shape and its input sizes. Shared by every stage that builds or loads a model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from align.config.params import Section

#: Names of published shapes; `align.model.presets` has their numbers.
ImageTowerName = Literal["B0", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "L2"]
TextTowerName = Literal["Mini", "Small", "Medium", "Base", "Large"]

#: Samples that share batch statistics in training: groups of `batch_norm_group`, a rank's batch, the global batch.
BatchNormKind = Literal["group", "batch", "sync"]


class _Shape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ImageTowerShape(_Shape):
    """EfficientNet's compound scaling of width and depth; B0 is 1.0 and 1.0."""

    width_coefficient: float = Field(gt=0)
    depth_coefficient: float = Field(gt=0)


class TextTowerShape(_Shape):
    """BERT's hidden size, layers and attention heads."""

    width: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


def _kind(value: object) -> str:
    """By which of the two a value is judged, so that an error speaks of one of them only."""
    return "name" if isinstance(value, str) else "shape"


class ModelConfig(Section):
    """Shape of the dual encoder; written into every model's config.json, so that a model folder explains itself."""

    section: ClassVar[str] = "model"

    resize_px: int = Field(ge=32)
    image_px: int = Field(ge=32)  # five halvings
    image_tower: Annotated[
        Annotated[ImageTowerName, Tag("name")] | Annotated[ImageTowerShape, Tag("shape")], Discriminator(_kind)
    ]
    stochastic_depth: float = Field(ge=0, lt=1)
    batch_norm: BatchNormKind
    batch_norm_group: int = Field(ge=1)
    text_tower: Annotated[
        Annotated[TextTowerName, Tag("name")] | Annotated[TextTowerShape, Tag("shape")], Discriminator(_kind)
    ]
    max_tokens: int = Field(ge=4, le=512)
    embed_width: int = Field(ge=8)
    temperature_init: float = Field(gt=0)
    #: Only for the sigmoid loss; None: there is none.
    logit_bias_init: float | None

    @property
    def whole_batch(self) -> bool:
        """Whether batch statistics span a rank's whole batch: then it cannot be computed in parts (micro-batches)."""
        return self.batch_norm != "group"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.image_px > self.resize_px:
            raise ValueError(
                f"image_px {self.image_px} is larger than resize_px {self.resize_px}, which it is cropped from"
            )
        return self
