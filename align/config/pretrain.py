"""Pre-training from scratch, or from towers that were trained elsewhere."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from align.config.model import ModelConfig
from align.config.recipe import Recipe


class PretrainConfig(Recipe):
    """Parameters of `align pretrain`."""

    section: ClassVar[str] = "pretrain"

    def against(self, model: ModelConfig, num_nodes: int, num_processes: int | None) -> str | None:
        """As `Recipe.against`; given weights also have to be those of the model's tower."""
        given = self.image_weights
        if given is not None and given.preset != model.image_tower:
            return (
                f"{self.section}.image_weights are of {given.architecture}, so model.image_tower must be "
                f"{given.preset}, not {model.image_tower}"
            )
        return super().against(model, num_nodes, num_processes)

    @model_validator(mode="after")
    def _locks_what_was_trained(self) -> Self:
        given = {"image": self.image_weights, "text": self.text_weights, "none": True}
        if not given[self.locked]:
            raise ValueError(
                f"locked: {self.locked} needs {self.locked}_weights: a tower of random weights would learn nothing; "
                "name its weights, or set locked to none"
            )
        return self
