"""Pre-training from scratch."""

from __future__ import annotations

from typing import ClassVar

from align.config.recipe import Recipe


class PretrainConfig(Recipe):
    """Parameters of `align pretrain`."""

    section: ClassVar[str] = "pretrain"
