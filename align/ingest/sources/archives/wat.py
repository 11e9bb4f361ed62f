"""WAT records, Common Crawl's description of a page as JSON -> the pairs of its IMG@/src links."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from align.ingest.limits import TooLarge
from align.ingest.sources import outcomes
from align.ingest.sources.pages import WrittenImage, resolved, resolver_of, texts_of_image
from align.ingest.sources.reading import Batches
from align.ingest.sources.rights import MARKS, Marks, of_headers, of_metas

_OK = "200"
_PATH = "IMG@/src"
_QUOTED_PATH = b'"IMG@/src"'
_LINKS = b'"Links":['
#: The most commas and brackets of a record, a bound on its values: each takes up to 250 bytes once it is parsed.
_MAX_VALUES = 1_000_000


def add_wat_record(
    body: bytes, text_from: Sequence[str], batches: Batches, counts: Counter[str], *, every: bool = False
) -> str | None:
    """Adds the pairs of one page. Returns the outcome; None for a record that describes no page.

    Args:
        body: of a `metadata` record; in a WARC it may be anything.
        text_from, every: as for `pages.page_images`; a WAT has alt and title only.
        batches: where the rows are added.
        counts: of pages and rows.

    Raises:
        TooLarge: the record is beyond a bound.
    """
    if b'"HTML-Metadata"' not in body:
        return None
    num_values = sum(map(body.count, (b",", b"{", b"["))) if len(body) > _MAX_VALUES else 0
    if num_values > _MAX_VALUES:
        raise TooLarge(f"too large: a record with {num_values:,} values, above {_MAX_VALUES:,}")
    try:
        page = _page(body, text_from, every)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        counts["pages"] += 1
        counts["pages_unreadable"] += 1
        return outcomes.PAGE_UNREADABLE
    if page is None:
        return outcomes.ERROR_STATUS
    images = resolved(page.written, page.url, page.base)
    counts["pages"] += 1
    counts["rows"] += len(images)
    batches.add_page(page.url, images, page.marks.rights(resolver_of(page.url, page.base), page.reservation))
    return outcomes.PAGE if images else outcomes.PAGE_WITHOUT_IMAGES


class _Page(NamedTuple):
    url: str
    base: str | None
    written: list[WrittenImage]
    marks: Marks
    reservation: str | None


def _page(body: bytes, text_from: Sequence[str], every: bool) -> _Page | None:
    """What a record says; None if the page's status is not 200.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: the record is of another kind.
    """
    marked = any(mark.encode() in body.lower() for mark in MARKS)
    envelope, links = _all_parsed(body) if marked else _parsed(body)
    response = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]
    if str(response.get("Response-Message", {}).get("Status", _OK)) != _OK:
        return None
    head = response["HTML-Metadata"].get("Head", {})
    url, base = envelope["WARC-Header-Metadata"]["WARC-Target-URI"], head.get("Base")
    if not isinstance(url, str) or not isinstance(base, str | None):
        raise TypeError("an address that is no text")
    written = [image for link in links if link.get("path") == _PATH for image in _written(link, text_from, every)]
    if not marked:
        return _Page(url, base, written, Marks(), None)
    links = [*head.get("Link", []), *links]
    marks = Marks(of_metas(_texts(head.get("Metas", []), "name", "content")), list(_texts(links, "rel", "url")))
    headers = {name.lower(): [value] for name, value in response.get("Headers", {}).items() if isinstance(value, str)}
    of_response = of_headers(headers.get("x-robots-tag", []), headers.get("tdm-reservation", []), is_page=True)
    return _Page(url, base, written, marks, of_response)


def _texts(values: list[dict[str, Any]], *keys: str) -> Iterator[tuple[str, str]]:
    """Two values of each, entities decoded; one that is no text is empty."""
    for value in values:
        first, second = (html.unescape(text) if isinstance(text := value.get(key), str) else "" for key in keys)
        yield first, second


def _written(link: dict[str, Any], text_from: Sequence[str], every: bool) -> list[WrittenImage]:
    """The link's values with entities decoded: WATs have them as the page wrote them."""

    def as_written(key: str) -> str:
        value = link.get(key)
        return value if isinstance(value, str) else ""

    def unescaped(key: str) -> str:
        return html.unescape(as_written(key))

    texts = texts_of_image(as_written, text_from, every=every)
    if any("&" in text for text, _ in texts):
        texts = texts_of_image(unescaped, text_from, every=every)
    address = (link.get("url") or "").strip().replace("&amp;", "&")
    return [(address, text, text_source) for text, text_source in texts]


def _parsed(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The envelope, and the page's links, at least those of images.

    Links of other kinds make up most of a record. So links of images are cut out at their braces, and the rest is
    parsed without links. A brace in a text makes the fragments invalid JSON; then the whole record is parsed.

    Raises:
        ValueError, KeyError, TypeError: the record is of another kind.
    """
    start = body.find(_LINKS) + len(_LINKS)
    end = body.find(b"}]", start) + 1
    if start >= len(_LINKS) and end > 0 and body[start : start + 1] == b"{":
        fragments = []
        close, position = start, body.find(_QUOTED_PATH, start, end)
        while position >= 0:
            opened = body.rfind(
                b"{", close, position
            )  # not before the last fragment: each byte is in one fragment at most
            close = body.find(b"}", position, end) + 1
            if opened < 0 or not close:
                return _all_parsed(body)
            fragments.append(body[opened:close])
            position = body.find(_QUOTED_PATH, close, end)
        try:
            return orjson.loads(body[:start] + body[end:])["Envelope"], [
                orjson.loads(fragment) for fragment in fragments
            ]
        except ValueError:
            pass
    return _all_parsed(body)


def _all_parsed(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    envelope = json.loads(body)["Envelope"]  # not orjson: it refuses half a surrogate pair, which some texts contain
    return envelope, envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"].get("Links", [])
