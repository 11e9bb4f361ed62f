"""The dual encoder's shape and its input sizes. Shared by every stage that builds or loads a model."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from align.config.params import Section


class ModelConfig(Section):
    """Shape of the dual encoder; written into every model's config.json, so that a model folder explains itself."""

    section: ClassVar[str] = "model"

    resize_px: int = Field(ge=32)
    image_px: int = Field(ge=32)  # five halvings
    width_coefficient: float = Field(gt=0)
    depth_coefficient: float = Field(gt=0)
    stochastic_depth: float = Field(ge=0, lt=1)
    batch_norm_group: int = Field(ge=1)
    text_width: int = Field(ge=8)
    text_layers: int = Field(ge=1)
    text_heads: int = Field(ge=1)
    max_tokens: int = Field(ge=4, le=512)
    embed_width: int = Field(ge=8)
    temperature_init: float = Field(gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.image_px > self.resize_px:
            raise ValueError(
                f"image_px {self.image_px} is larger than resize_px {self.resize_px}, which it is cropped from"
            )
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width {self.text_width} is no multiple of text_heads {self.text_heads}")
        return self
