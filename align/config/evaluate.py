"""Section `evaluate`: how the metrics get their intervals, and how many examples the report shows."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class EvaluateConfig(Section):
    """The metrics themselves (recall@1/5/10, zero-shot, nearest neighbour) are the paper's, and not parameters."""

    section: ClassVar[str] = "evaluate"

    seed: Annotated[int, Field(ge=0)]
    #: None: the model's.
    image_px: Annotated[int | None, Field(ge=32)]
    num_resamples: Annotated[int, Field(ge=100)]
    max_test_images: Annotated[int, Field(ge=0)]
    num_examples: Annotated[int, Field(ge=0, le=50)]
