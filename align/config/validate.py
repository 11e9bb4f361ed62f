"""Section `validate`: the thresholds of the quality gate."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from align.config.params import Section, Strict, in_order

Share = Annotated[float, Field(ge=0, le=1)]
#: [lowest, highest], both included. YAML has no tuples, so a list is read as one.
Band = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(in_order)]


class MaxDrift(Strict):
    """How far data may move from the reference: the keep rate by its change, the others by `align.validate.drift`."""

    keep_rate: Share
    text_length: Share
    image_size: Share
    language: Share


class ValidateConfig(Section):
    """The conditions that data must meet to become shards."""

    section: ClassVar[str] = "validate"

    min_pairs: Annotated[int, Field(ge=1)]
    min_success_share: Share
    keep_rate: Band
    #: The same of the pairs whose text has one source (`text_source`).
    keep_rate_by_source: dict[Annotated[str, Field(min_length=1)], Band]
    dropped_share: dict[Annotated[str, Field(pattern="^[a-z_]+$")], Band]
    min_evaluation_sets: Annotated[int, Field(ge=0)]
    #: The share of kept pairs whose image has the perceptual hash of an evaluation image, independent of the filter's
    #: verdict.
    max_evaluation_hash_share: Share
    max_drift: MaxDrift
    sample_rows: Annotated[int, Field(ge=1)]
