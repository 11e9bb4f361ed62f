"""The pairs of a row of a table: one for each of its texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from align.ingest.limits import MAX_PAGE_CHARACTERS
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.reading import Batches
from align.ingest.sources.texts import NESTED, Sourced, texts_of_each

_NESTED = (dict, list)
_NO_TEXT: list[Sourced] = [("", None)]
NO_PICTURE = "no address"


class WrittenPairs(NamedTuple):
    """A row as it is written.

    Attributes:
        picture: its address or file name; empty: none.
        texts: at least one, which may be empty, each with its column.
        page_url: of the page that shows the picture; or None.
        problem: why the row cannot be read; or None.
    """

    picture: str
    texts: list[Sourced]
    page_url: str | None
    problem: str | None


def unreadable(problem: str) -> WrittenPairs:
    """A row that cannot be read."""
    return WrittenPairs("", _NO_TEXT, None, problem)


def written_pairs(picture: Any, values: Sequence[Any], page_url: Any, columns: Sequence[str]) -> WrittenPairs:
    """The pairs of a row: its picture, the values of the columns of texts, and its page; None where it has none."""
    texts, problem = texts_of_each(values, columns)
    if isinstance(picture, _NESTED) or isinstance(page_url, _NESTED):
        picture, texts, page_url, problem = None, _NO_TEXT, None, NESTED
    page = None if page_url is None else str(page_url)
    written = "" if picture is None else str(picture).strip()
    if len(texts) > 1:
        num_characters = sum(len(text) + len(written) + len(page or "") for text, _ in texts)
        if num_characters > MAX_PAGE_CHARACTERS:
            texts, problem = _NO_TEXT, f"too large: a row whose {len(texts):,} texts repeat a long address"
    return WrittenPairs(written, texts, page, problem)


def add_pairs(batches: Batches, counts: Counter[str], pairs: WrittenPairs, picture: Candidate) -> None:
    """Adds the pairs of a row, and counts them; `picture` is a candidate without text.

    A row whose picture is missing does not count as one that cannot be read.
    """
    if pairs.problem:
        counts["rows_unreadable"] += len(pairs.texts)
    counts["rows"] += len(pairs.texts)
    for text, source in pairs.texts:
        batches.add(picture._replace(text=text, text_source=source))
