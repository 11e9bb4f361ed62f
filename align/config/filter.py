"""Parameters of `align filter`: one cut per rule of the paper (section 3)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from align.config.params import Section


class FilterConfig(Section):
    """The cuts. Names with `min` and `max` are of the values that are *kept*, except where a comment says otherwise."""

    section: ClassVar[str] = "filter"

    #: I0: pictures of more pixels are not decoded and count as undecodable.
    max_image_pixels: PositiveInt
    #: I1: dropped at this score or above (0 clean, 1 pornographic).
    nsfw_threshold: float = Field(gt=0, le=1)
    #: I2: the shorter side must be greater.
    short_side_above_px: NonNegativeInt
    #: I3: long side / short side must be below.
    aspect_ratio_below: float = Field(gt=1)
    #: I4: at most so many distinct texts per image.
    max_texts_per_image: PositiveInt
    #: I5: two images are near-duplicates if their 64-bit perceptual hashes differ in at most so many bits ...
    max_phash_distance: int = Field(ge=0, le=64)
    #: ... and the colours of their thumbnails correlate above this.
    thumbnail_correlation_above: float = Field(ge=-1, le=1)
    #: T1: at most so many distinct images per text.
    max_images_per_text: PositiveInt
    #: T2: every unigram and bigram must lie in the so many most frequent ones of the raw data (one joint list).
    num_frequent_ngrams: PositiveInt
    #: T3: fewest words, included.
    min_words: PositiveInt
    #: T3: most words, included.
    max_words: PositiveInt
    #: Ours, not the paper's: drop texts that are a file name, path or URL.
    drop_filenames: bool

    @model_validator(mode="after")
    def _words_in_order(self) -> FilterConfig:
        if self.min_words > self.max_words:
            raise ValueError(f"filter.min_words {self.min_words} is above filter.max_words {self.max_words}")
        return self
