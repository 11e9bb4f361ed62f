"""A search of `align serve` and of `align search`: what may be asked, its vector, a page of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from align.errors import DataError
from align.formats.image_index import Hit, IndexedImage
from align.search.queries import compose
from align.search.service.answers import (
    MAX_RESULTS,
    SearchAnswer,
    SearchHit,
    SearchQuery,
    ServedVersion,
    StartAnswer,
)
from align.search.service.served import Served
from align.search.surely import NO_LINE, line_for, meaning

Rows = NDArray[np.float32]
Allowed = NDArray[np.bool_] | None
#: Pictures that a page begins with, and characters of its example.
_NUM_FIRST, _LONGEST_EXAMPLE = 12, 60
#: Of the hits of one answer as JSON.
_MAX_BYTES = 1 << 19


def parsed(values: Mapping[str, Any]) -> SearchQuery:
    """A query by its fields, as an address or a command line has them. Raises DataError if one is wrong."""
    try:
        return SearchQuery.model_validate(values)
    except ValidationError as error:
        raise DataError(first_wrong(error.errors(include_url=False))) from None


def first_wrong(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors in one line."""
    where = ".".join(str(part) for part in errors[0]["loc"] if part not in ("query", "body", "path"))
    what = str(errors[0]["msg"]).removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def require_one_question(query: SearchQuery, *, has_image: bool) -> None:
    """Raises DataError if a query asks for nothing, not even by a filter, for two things, or for an empty text.

    Args:
        query: it.
        has_image: whether a picture came with it.
    """
    num_asked = (query.text is not None) + (query.key is not None) + has_image
    if num_asked > 1 or not (num_asked or query.where or query.words is not None or query.split):
        raise DataError("give one of text, key and image, or a filter alone")
    if not has_image and query.key is None and (query.plus or query.minus):
        raise DataError("plus and minus change a picture: give key or image with them")
    for name in ("text", "plus", "minus", "words"):
        if (value := getattr(query, name)) is not None:
            require_text(value, name)


def require_text(text: str, name: str) -> None:
    """Raises DataError if a text is empty or not Unicode."""
    if not text.strip():
        raise DataError(f"{name}: the text is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name}: the text is not Unicode") from None


def answer(
    query: SearchQuery, served: Served, allowed: Allowed, text_weight: float, texts: Rows, image: Rows
) -> SearchAnswer:
    """Looks for the nearest pictures. An indexed picture is no answer to itself. A filter alone lists pictures.

    Args:
        query: what is asked.
        served: the release.
        allowed: which pictures may be found, see `ImageIndex.allowed`.
        text_weight: of words added or taken away, if the query names none.
        texts: (number of `query.texts`, width), L2-normalised.
        image: (0 or 1, width): the picture that came with the request.

    Raises:
        DataError: no picture has the key, or picture and words cancel each other out.
    """
    begin, end = query.offset, query.offset + query.limit
    filters = ", ".join(filter(None, [*query.where, query.words, query.split]))
    is_list = query.text is None and query.key is None and not len(image)
    vector = None if is_list else _vector(query, served, query.weight or text_weight, texts, image)
    exclude = [query.key] if query.key is not None else []
    hits = served.index.search(vector, end + 1, exclude=exclude, allowed=allowed)
    line, promise = _promise(query, served, is_list=is_list, first=hits[0].score if hits else -1.0)
    shown = [_shown(served, hit, begin + rank, line) for rank, hit in enumerate(hits[begin:end], 1)]
    return SearchAnswer(
        query=filters if is_list else query.describe(),
        served=version(served),
        num_images=served.index.num_images,
        offset=begin,
        more=len(hits) > end and end < MAX_RESULTS,
        hint="" if hits else served.index.items.offered(query.where),
        promise=promise,
        hits=shown,
    )


def _promise(query: SearchQuery, served: Served, *, is_list: bool, first: float) -> tuple[float | None, str]:
    """The line and what it means; without a line, why. `first` is the highest score."""
    promise = served.index.header.promise
    if is_list:
        return None, ""
    if promise is None:
        return None, NO_LINE["promise"]
    if query.text is None:
        return None, NO_LINE["words"]
    if query.where or query.words is not None or query.split:
        return None, NO_LINE["all"]
    line = line_for(promise, query.surely, float(served.embedder.splits([query.text])[0]))
    return line, meaning(promise, query.surely, has_sure=_rounded(first) >= line)


def bounded(hits: Sequence[SearchHit]) -> list[SearchHit]:
    """The first hits, as many as an answer may hold; one always. A full catalogue has 64 kB of columns in each."""
    sizes = accumulate(len(hit.model_dump_json()) for hit in hits)
    return list(hits[: max(1, sum(size <= _MAX_BYTES for size in sizes))])


def start(served: Served) -> StartAnswer:
    """What a page begins with."""
    items = served.index.spread(_NUM_FIRST)
    texts = [text for item in items for text in item.texts if 0 < len(text) <= _LONGEST_EXAMPLE]
    return StartAnswer(
        served=version(served),
        num_images=served.index.num_images,
        example=texts[len(texts) // 2] if texts else None,
        columns=served.index.items.choices,
        hits=bounded([_shown(served, Hit(item, 0.0), rank) for rank, item in enumerate(items, 1)]),
    )


def version(served: Served) -> ServedVersion:
    """What is served, for an answer."""
    release = served.release
    fields = {name: getattr(release, name) for name in ("name", "version", "run_id", "digest")}
    return ServedVersion(**fields, model_digest=served.index.header.model_digest, origin=served.origin)


def facts(served: Served, item: IndexedImage) -> dict[str, Any]:
    """The fields of `Shown`. The address differs for another index, so that browsers may keep the picture."""
    names = ("key", "image_id", "split", "texts", "columns")
    address = f"/image/{quote(item.key, safe='')}?of={served.release.digest[:12]}"
    return {name: getattr(item, name) for name in names} | {"image": address}


def _vector(query: SearchQuery, served: Served, weight: float, texts: Rows, image: Rows) -> Rows:
    if query.text is not None:
        first: Rows = texts[0]
        return first
    start: Rows = served.index.vector(query.key) if query.key is not None else image[0]
    words = iter(texts)
    plus = next(words) if query.plus is not None else None
    minus = next(words) if query.minus is not None else None
    try:
        return compose(start, plus=plus, minus=minus, text_weight=weight)
    except ValueError as error:
        raise DataError(str(error)) from None


def _shown(served: Served, hit: Hit, rank: int, line: float | None = None) -> SearchHit:
    score = _rounded(hit.score)
    return SearchHit(rank=rank, score=score, sure=None if line is None else score >= line, **facts(served, hit.item))


def _rounded(score: float) -> float:
    return round(min(max(score, -1.0), 1.0), 6)
