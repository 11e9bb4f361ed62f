"""WAT records, Common Crawl's description of a page as JSON -> the pairs of its IMG@/src links."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from align.ingest.sources.pages import WrittenImage, first_text, resolved
from align.ingest.sources.reading import Batches

_OK = "200"
_PATH = "IMG@/src"
_QUOTED_PATH = b'"IMG@/src"'
_LINKS = b'"Links":['


def add_wat_record(body: bytes, text_from: Sequence[str], batches: Batches, counts: Counter[str]) -> None:
    """Adds the pairs of one page; adds nothing for a record of another kind.

    Args:
        body: of a `metadata` record; in a WARC it may be anything.
        text_from: as for `pages.page_images`; a WAT has alt and title only.
        batches: where the rows are added.
        counts: of pages and rows.
    """
    if b'"HTML-Metadata"' not in body:
        return
    try:
        envelope, links = _parsed(body)
        page_url = envelope["WARC-Header-Metadata"]["WARC-Target-URI"]
        response = envelope["Payload-Metadata"]["HTTP-Response-Metadata"]
        if str(response.get("Response-Message", {}).get("Status", _OK)) != _OK:
            return
        base = response["HTML-Metadata"].get("Head", {}).get("Base")
        written = [_written(link, text_from) for link in links if link.get("path") == _PATH]
    except (ValueError, KeyError, TypeError, AttributeError):
        counts["pages"] += 1
        counts["pages_unreadable"] += 1
        return
    counts["pages"] += 1
    counts["rows"] += len(written)
    batches.add_page(page_url, resolved(written, page_url, base))


def _written(link: dict[str, Any], text_from: Sequence[str]) -> WrittenImage:
    """The link's values with entities decoded: WATs have them as the page wrote them."""
    text, text_source = first_text(link.get, text_from)
    if "&" in text:
        text, text_source = first_text(lambda key: html.unescape(link.get(key) or ""), text_from)
    return (link.get("url") or "").strip().replace("&amp;", "&"), text, text_source


def _parsed(body: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The envelope, and the page's links, at least those of images.

    Links of other kinds make up most of a record. So links of images are cut out at their braces, and the rest is
    parsed without links. A brace in a text makes the pieces invalid JSON; then the whole record is parsed.

    Raises:
        ValueError, KeyError, TypeError: the record is of another kind.
    """
    start = body.find(_LINKS) + len(_LINKS)
    end = body.find(b"}]", start) + 1
    if start >= len(_LINKS) and end > 0 and body[start : start + 1] == b"{":
        pieces = []
        position = body.find(_QUOTED_PATH, start, end)
        while position >= 0:
            close = body.find(b"}", position, end) + 1
            pieces.append(body[body.rfind(b"{", start, position) : close])
            position = body.find(_QUOTED_PATH, close, end) if close else -1
        try:
            return orjson.loads(body[:start] + body[end:])["Envelope"], [orjson.loads(piece) for piece in pieces]
        except ValueError:
            pass
    envelope = json.loads(body)["Envelope"]  # not orjson: it refuses half a surrogate pair, which some texts contain
    return envelope, envelope["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"].get("Links", [])
