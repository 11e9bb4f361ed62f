"""Retrieval fine-tuning of the pre-trained model, or of another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from align.config.recipe import Recipe


class FinetuneConfig(Recipe):
    """Parameters of `align finetune`."""

    section: ClassVar[str] = "finetune"
    #: The model in the folder decides the result, by the digest of its weights, and not the folder's path. Towers that
    #: were given to pre-training are part of it.
    neutral_fields: ClassVar[frozenset[str]] = Recipe.neutral_fields | {"start", "image_weights", "text_weights"}

    #: `from` is a keyword of Python.
    start: Annotated[Path, Field(alias="from", strict=False)]
    #: 0: the model is taken as it is.
    num_steps: int = Field(ge=0)
