"""The parts of a request: what to embed, the vector that this makes, which pictures count, which page of them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.image_index import Hit
from align.search.queries import compose
from align.search.service.answers import (
    MAX_RESULTS,
    Asked,
    SearchAnswer,
    SearchHit,
    SearchQuery,
    ServedVersion,
    StartAnswer,
)
from align.search.service.served import Served

Rows = NDArray[np.float32]
Allowed = NDArray[np.bool_] | None
#: Pictures that a page begins with, and characters of its example.
_NUM_FIRST, _LONGEST_EXAMPLE = 12, 60


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
        asked: the request, checked by `checked`.
        text: what the pictures should show, or None.
        key: of an indexed picture, or None.
        weight: of the words added or taken away.
    """

    asked: Asked
    text: str | None
    key: str | None
    weight: float

    @property
    def texts(self) -> list[str]:
        """What is to be embedded, in the order in which `answer` takes it."""
        return [text for text in (self.text, self.asked.plus, self.asked.minus) if text is not None]

    def describe(self) -> str:
        """The query in words."""
        if self.text is not None:
            return self.text
        words = f"picture {self.key}" if self.key else "the picture"
        plus, minus = self.asked.plus, self.asked.minus
        return words + (f" + “{plus}”" if plus else "") + (f" - “{minus}”" if minus else "")


def checked(asked: Asked, text_weight: float, *, has_image: bool) -> Query:
    """A request as a query.

    Args:
        asked: the request; a `SearchQuery` has text and key.
        text_weight: `search.text_weight`.
        has_image: whether a picture came with it.

    Raises:
        DataError: it asks for nothing, for two things, or for more than the limits allow.
    """
    text, key = (asked.text, asked.key) if isinstance(asked, SearchQuery) else (None, None)
    if (text is not None) + (key is not None) + has_image != 1:
        raise DataError("give one of text, key and image")
    if text is not None and (asked.plus or asked.minus):
        raise DataError("plus and minus change a picture: give key or image with them")
    for name, value in (("text", text), ("plus", asked.plus), ("minus", asked.minus), ("words", asked.words)):
        if value is not None:
            require_text(value, name)
    if (end := asked.offset + asked.limit) > MAX_RESULTS:
        raise DataError(f"offset + limit: {end:,}; results end at {MAX_RESULTS:,}")
    return Query(asked, text, key, asked.weight or text_weight)


def require_text(text: str, name: str) -> None:
    """Raises DataError if a text is empty or not Unicode."""
    if not text.strip():
        raise DataError(f"{name}: the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name}: the text is not Unicode") from None


def answer(query: Query, served: Served, allowed: Allowed, texts: Rows, image: Rows) -> SearchAnswer:
    """Looks for the nearest pictures.

    Args:
        query: what is asked.
        served: the release.
        allowed: which pictures may be found, see `ImageIndex.allowed`.
        texts: (number of `query.texts`, width), L2-normalised.
        image: (0 or 1, width): the picture that came with the request.

    Raises:
        DataError: no picture has the key, or picture and words cancel each other out.
    """
    begin, end = query.asked.offset, query.asked.offset + query.asked.limit
    vector = _vector(query, served, texts, image)
    exclude = [query.key] if query.key is not None else []
    hits = served.index.search(vector, end + 1, exclude=exclude, allowed=allowed)
    shown = [_shown(served, hit, begin + rank) for rank, hit in enumerate(hits[begin:end], 1)]
    return SearchAnswer(
        query=query.describe(),
        served=version(served),
        num_images=served.index.num_images,
        offset=begin,
        more=len(hits) > end and end < MAX_RESULTS,
        hits=shown,
    )


def start(served: Served) -> StartAnswer:
    """What a page begins with."""
    items = served.index.spread(_NUM_FIRST)
    texts = [text for item in items for text in item.texts if 0 < len(text) <= _LONGEST_EXAMPLE]
    return StartAnswer(
        served=version(served),
        num_images=served.index.num_images,
        example=texts[len(texts) // 2] if texts else None,
        columns=served.index.columns.choices,
        hits=[_shown(served, Hit(item, 0.0), rank) for rank, item in enumerate(items, 1)],
    )


def version(served: Served) -> ServedVersion:
    """What is served, for an answer."""
    release = served.release
    return ServedVersion(
        name=release.name,
        version=release.version,
        run_id=release.run_id,
        model_digest=served.index.header.model_digest,
        digest=release.digest,
    )


def picture_address(served: Served, key: str) -> str:
    """The address of an indexed picture on this server.

    It differs for another index, so that browsers may keep the picture.
    """
    return f"/image/{quote(key, safe='')}?of={served.release.digest[:12]}"


def _vector(query: Query, served: Served, texts: Rows, image: Rows) -> Rows:
    if query.text is not None:
        first: Rows = texts[0]
        return first
    start: Rows = served.index.vector(query.key) if query.key is not None else image[0]
    words = iter(texts)
    plus = next(words) if query.asked.plus is not None else None
    minus = next(words) if query.asked.minus is not None else None
    try:
        return compose(start, plus=plus, minus=minus, text_weight=query.weight)
    except ValueError as error:
        raise DataError(str(error)) from None


def _shown(served: Served, hit: Hit, rank: int) -> SearchHit:
    item = hit.item
    return SearchHit(
        rank=rank,
        score=round(min(max(hit.score, -1.0), 1.0), 6),
        key=item.key,
        image_id=item.image_id,
        split=item.split,
        texts=list(item.texts),
        image=picture_address(served, item.key),
        columns=served.index.columns_of(item.key),
    )
