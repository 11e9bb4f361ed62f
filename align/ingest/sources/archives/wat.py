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
from align.ingest.sources.rights import MARKS, Rights, of_headers, of_page

_OK = "200"
_PATH = "IMG@/src"
#: The most commas and brackets of a record, a bound on its values: each takes up to 250 bytes once it is parsed.
_MAX_VALUES = 1_000_000


def add_wat_record(
    body: bytes, text_from: Sequence[str], batches: Batches, counts: Counter[str], *, every: bool = False
) -> str | None:
    """Adds the pairs of one page. Returns the outcome; None for a record that describes no page.

    `body` is of a `metadata` record, and in a WARC may be anything; `text_from` and `every` are as for
    `pages.page_images`, but a WAT has alt and title only. Raises TooLarge if the record is beyond a bound.
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
    batches.add_page(page.url, images, page.rights)
    return outcomes.PAGE if images else outcomes.PAGE_WITHOUT_IMAGES


class _Page(NamedTuple):
    url: str
    base: str | None
    written: list[WrittenImage]
    rights: Rights


def _page(body: bytes, text_from: Sequence[str], every: bool) -> _Page | None:
    """What a record says; None if the page's status is not 200. Raises what Python does if it is of another kind."""
    marked = any(mark.encode() in body.lower() for mark in MARKS)
    envelope, links = _parsed(body)
    response = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]
    if str(response.get("Response-Message", {}).get("Status", _OK)) != _OK:
        return None
    head = response["HTML-Metadata"].get("Head", {})
    url, base = envelope["WARC-Header-Metadata"]["WARC-Target-URI"], head.get("Base")
    if not isinstance(url, str) or not isinstance(base, str | None):
        raise TypeError("an address that is no text")
    written = [image for link in links if link.get("path") == _PATH for image in _written(link, text_from, every)]
    if not marked:
        return _Page(url, base, written, Rights())
    links = [*head.get("Link", []), *links]
    headers = {name.lower(): [value] for name, value in response.get("Headers", {}).items() if isinstance(value, str)}
    of_response = of_headers(lambda name: headers.get(name.lower(), []), is_page=True)
    metas, resolver = _texts(head.get("Metas", []), "name", "content"), resolver_of(url, base)
    return _Page(url, base, written, of_page(metas, _texts(links, "rel", "url"), resolver, of_response))


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
    """The envelope, and the page's links."""
    try:
        envelope = orjson.loads(body)["Envelope"]
    except ValueError:  # it refuses half a surrogate pair, which some texts contain
        envelope = json.loads(body)["Envelope"]
    return envelope, envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"].get("Links", [])
