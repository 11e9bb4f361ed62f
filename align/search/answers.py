"""What a figure or a page of search results shows: queries and the images that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ImageAnswer:
    """An image that search returned.

    Attributes:
        image: encoded bytes.
        text: one of its texts.
        score: cosine with the query.
        right: whether it is what was meant; None if nobody said what was meant.
    """

    image: bytes
    text: str
    score: float
    right: bool | None


@dataclass(frozen=True)
class AnsweredQuery:
    """A query with its answers.

    Attributes:
        query: the text, or a description of the query.
        image: the query image's bytes, if there is one.
        answers: nearest first.
        right: whether the query counts as answered; None if nobody said what was meant.
    """

    query: str
    image: bytes | None
    answers: Sequence[ImageAnswer]
    right: bool | None
