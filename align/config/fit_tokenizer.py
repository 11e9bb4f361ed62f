"""How the WordPiece vocabulary is learned, or which one is taken instead."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from align.config.given import Given
from align.config.params import Section


class FitTokenizerConfig(Section):
    """Parameters of `align fit_tokenizer`."""

    section: ClassVar[str] = "fit_tokenizer"

    vocab_size: int = Field(ge=8)
    min_count: int = Field(ge=1)
    max_texts: int = Field(ge=1)
    #: A folder in Hugging Face's format, with the digest of `tokenizer.json`: taken as it is, instead of a learned
    #: one. `from` is a keyword of Python.
    given: Given | None = Field(alias="from")
