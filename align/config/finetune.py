"""Retrieval fine-tuning from the pre-trained model."""

from __future__ import annotations

from typing import ClassVar

from align.config.recipe import Recipe


class FinetuneConfig(Recipe):
    """Parameters of `align finetune`."""

    section: ClassVar[str] = "finetune"
