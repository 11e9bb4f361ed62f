"""An HTML page's bytes -> its pictures: address and text of every <img>, in page order.

Decisions where pages leave room:

* The address is the largest candidate of `srcset` and of the `<source>`s of an enclosing <picture>: by width (`800w`)
  where any states one, else by density (`2x`); `sizes` and `media` speak of a screen that we do not have. Between
  equals `src` comes first, then the <img>'s own `srcset`: the most compatible format.
* Lazy loading: `src` holds a placeholder until a script copies the true address from one of LAZY_SRC (LAZY_SRCSET).
  Where such an attribute looks like an address it takes the place of `src` (`srcset`). A `data:` URI is taken only
  where nothing else is named. Images in <noscript> count, those in <template> do not.
* The text is the first of `alt`, the <figcaption> of the enclosing <figure>, `title`, `aria-label` (as configured) that
  says something, white space and control characters being nothing. It stays as found, entities decoded.
* A page that says a wrong charset is read as what its bytes are (see `decode_html`).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from align.pairs.text import normalise
from align.pairs.urls import Address, Resolver, canonical_url

__all__ = ["LAZY_SRC", "LAZY_SRCSET", "PageImage", "canonical_url", "decode_html", "page_images"]

#: Attributes in which the usual scripts for lazy loading keep the address (lazysizes, WordPress, jQuery Lazy, ...).
LAZY_SRC = (
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-original-src",
    "data-full-src",
    "data-echo",
)
LAZY_SRCSET = ("data-srcset", "data-lazy-srcset", "data-original-set")

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: Python's codecs of these names are narrower than what browsers (and so pages) mean by them.
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-11": "cp874"}
#: Without a match a page has no image, and is not parsed (<image> becomes <img>).
_IMAGE_TAG = re.compile(rb"<ima?ge?[\s/>]", re.IGNORECASE)
_ADDRESS_CHARACTER = re.compile(r"[./]")
_CANDIDATE = re.compile(r"[\s,]*(\S+)\s*")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([wx])")
#: What no reader of ours decodes, whatever its size; the fall-back of the <picture> is there for that.
_UNREADABLE_TYPES = ("image/svg+xml", "image/jxl", "image/jp2", "image/vnd.ms-photo")

#: How large a candidate is: (2, width), (1, density), (0, 0) for a data: URI, the last resort.
_Size = tuple[int, float]


class PageImage(NamedTuple):
    """One <img> of a page.

    Attributes:
        url: absolute and canonical, or as written where it is no URL that a server could be asked for;
            `data:<type>;sha256=<hex>` for a data: URI.
        text: with entities decoded, otherwise as found; empty where the page has none.
        text_source: where the text was: alt, figcaption, title, aria-label; None where nothing says anything.
        problem: why there is no picture, whatever is tried; or None.
        inline: the bytes that a data: URI holds; or None.
    """

    url: str
    text: str
    text_source: str | None
    problem: str | None = None
    inline: bytes | None = None


#: One <img> before its address is resolved: the address as written, empty where the page names none; the text and its
#: place as in PageImage.
WrittenImage = tuple[str, str, str | None]


def page_images(body: bytes, page_url: str, http_charset: str | None, text_from: Sequence[str]) -> list[PageImage]:
    """Every <img> in document order, resolved against <base href> and the page's URL.

    Args:
        body: the page as served, encodings of the transfer undone.
        page_url: absolute.
        http_charset: of the Content-Type header, if it names one.
        text_from: the places of the text, see above.
    """
    base, written = written_images(body, http_charset, text_from)
    return resolved(written, page_url, base)


def resolved(written: Sequence[WrittenImage], page_url: str, base: str | None) -> list[PageImage]:
    """The images of a page with their addresses; `base` is the href of its <base>, if it has one."""
    resolver = resolver_of(page_url, base)
    images = []
    for number, (source, text, text_source) in enumerate(written):
        url = resolver.simply_joined(source)
        if url is not None:
            images.append(PageImage(url, text, text_source))
            continue
        address = resolver.resolve(source) if source else no_address(page_url, number)
        images.append(PageImage(address.url, text, text_source, address.problem, address.inline))
    return images


def no_address(page_url: str, number: int) -> Address:
    """Of an <img> that names no picture: a name of its own, so that such pairs spread over the shards."""
    return Address(f"{page_url[:2048]}#img-{number}", "no address")


def resolver_of(page_url: str, base: str | None) -> Resolver:
    """Resolves against a page's URL and the href of its <base>, if it has a usable one."""
    resolver = Resolver(page_url)
    if base:
        try:
            return Resolver(resolver.joined(base))
        except ValueError:
            pass
    return resolver


def written_images(
    body: bytes, http_charset: str | None, text_from: Sequence[str]
) -> tuple[str | None, list[WrittenImage]]:
    """The href of the page's <base> and its images, not yet resolved."""
    if not _IMAGE_TAG.search(body) and not body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return None, []
    text = decode_html(body, http_charset)
    document = HTMLTree.parse(text).document
    if document is None:
        return None, []
    # `values` makes the nodes at once; iterating over the collection itself walks the tree for each of them
    nodes = document.get_elements_by_tag_name("img").values()
    if not nodes:
        return None, []
    base = document.query_selector("base[href]")  # the first one with an href counts, as in HTML
    has_picture = document.query_selector("picture") is not None
    has_caption = "figcaption" in text_from and document.query_selector("figcaption") is not None
    may_be_lazy = "data-" in text
    images = []
    for node in nodes:
        get = partial(_place, node) if has_caption else node.getattr
        images.append((_source(node, has_picture, may_be_lazy), *first_text(get, text_from)))
    return (base.getattr("href") or "").strip() if base is not None else None, images


def first_text(get: Callable[[str], str | None], text_from: Sequence[str]) -> tuple[str, str | None]:
    """The first text that says something, and its place; an empty text and None where none does."""
    for place in text_from:
        text = get(place)
        if text and (text[0].isalnum() or normalise(text)):
            return text, place
    return "", None


def _place(node: Any, place: str) -> str | None:
    text: str | None = _caption(node) if place == "figcaption" else node.getattr(place)
    return text


def _caption(node: Any) -> str | None:
    """The text of the <figcaption> of the nearest <figure>, not of a figure within or around that one."""
    figure = node.closest("figure")
    if figure is None:
        return None
    for caption in figure.query_selector_all("figcaption").values():
        if caption.closest("figure") == figure:
            text: str = caption.text
            return text
    return None


def _source(node: Any, has_picture: bool, may_be_lazy: bool) -> str:
    """The largest candidate, as written."""
    lazy = _lazy(node, LAZY_SRC) if may_be_lazy else None
    best = lazy or (node.getattr("src") or "").strip()
    own = (_lazy(node, LAZY_SRCSET) if may_be_lazy else None) or node.getattr("srcset")
    if not own and not has_picture:
        return best
    sets = [own] if own else []
    if has_picture and (picture := node.closest("picture")) is not None:
        for source in picture.query_selector_all("source").values():
            if (source.getattr("type") or "").strip().lower() not in _UNREADABLE_TYPES:
                sets.append((_lazy(source, LAZY_SRCSET) if may_be_lazy else None) or source.getattr("srcset") or "")
    size = _size(best, "")
    for srcset in sets:
        for url, candidate in _candidates(srcset):
            if candidate > size:
                best, size = url, candidate
    return best


def _lazy(node: Any, names: Sequence[str]) -> str | None:
    for name in names:
        value = node.getattr(name)  # of some scripts a flag or JSON
        if value and _ADDRESS_CHARACTER.search(value) and not value.lstrip().startswith(("{", "[")):
            stripped: str = value.strip()
            return stripped
    return None


def _candidates(srcset: str) -> Iterator[tuple[str, _Size]]:
    """Splits a srcset as HTML does: an address ends at white space, so it may hold commas itself."""
    position = 0
    while found := _CANDIDATE.match(srcset, position):
        url, position = found[1], found.end()
        descriptor = ""
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            end = srcset.find(",", position)
            end = len(srcset) if end < 0 else end
            descriptor, position = srcset[position:end], end + 1
        if url:
            yield url, _size(url, descriptor)


def _size(url: str, descriptor: str) -> _Size:
    if not url:
        return (-1, 0.0)
    if url[:5].lower() == "data:":
        return (0, 0.0)
    found = _DESCRIPTOR.match(descriptor)
    if found is None:
        return (1, 1.0)
    return (2 if found[2] == "w" else 1, float(found[1]))


def decode_html(body: bytes, http_charset: str | None) -> str:
    """The text of a page, whatever its charset.

    In order: the byte order mark; UTF-8 where the bytes are UTF-8 beyond ASCII, all but a few (which happens in no
    other charset by chance, and headers lie); the HTTP header; the <meta> tag; detection. A charset that the bytes
    contradict is passed over; a last character that is cut off, as crawlers do with long pages, is no contradiction.
    What none of them decodes is read in the first one that fits all but a few bytes, at last as Windows-1252.
    """
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            return body.decode(encoding, errors="replace")
    if body.isascii():
        if b"\x1b" not in body and b"\0" not in body:  # no escape sequences of ISO-2022, no UTF-16 either
            return body.decode("ascii")
    elif (utf8 := _decoded(body, "utf-8") or _nearly_decoded(body, "utf-8")) is not None:
        return utf8
    names = [
        map_encoding_to_html5(http_charset, False) if http_charset else None,
        detect_encoding(body, from_html_meta=True),
        detect_encoding(body),
    ]
    encodings = [_WIDER.get(name, name) for name in names if name]
    for encoding in encodings:
        text = _decoded(body, encoding)
        if text is not None:
            return text
    for encoding in encodings:
        text = _nearly_decoded(body, encoding)
        if text is not None:
            return text
    return body.decode("cp1252", errors="replace")


def _nearly_decoded(body: bytes, encoding: str) -> str | None:
    """The text, if at most every fiftieth byte beyond ASCII has no meaning in this charset."""
    text = body.decode(encoding, errors="replace")
    num_bytes = len(body) - len(body.translate(None, bytes(range(128, 256))))
    return text if text.count("\ufffd") * 50 <= num_bytes else None


def _decoded(body: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(body)
    except (UnicodeDecodeError, LookupError):
        return None
