"""An HTML page's bytes -> its pictures: address and text of every <img>, in page order.

Decisions where HTML allows several readings:

* The address is the largest candidate of `srcset` and of the `<source>`s of an enclosing <picture>: by width (`800w`)
  where any states one, else by density (`2x`). `sizes` and `media` describe a screen, which we do not have. Of equal
  candidates `src` comes first, then the <img>'s own `srcset`: the most compatible format.
* Lazy loading: `src` has a placeholder until a script copies the true address from one of LAZY_SRC (LAZY_SRCSET). Where
  such an attribute looks like an address, it is used instead of `src` (`srcset`). A `data:` URI is used only where no
  other address is named. Images in <noscript> count, those in <template> do not.
* The text is the first non-empty one of `alt`, the <figcaption> of the enclosing <figure>, `title`, `aria-label` (as
  configured); white space and control characters count as empty. It is kept as the page has it, entities decoded.
* A page that states a wrong charset is decoded by what its bytes are (see `decode_html`).
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
#: Python's codecs of these names cover less than what browsers (and so pages) mean by them.
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-11": "cp874"}
#: A page without a match has no image and is not parsed (<image> becomes <img>).
_IMAGE_TAG = re.compile(rb"<ima?ge?[\s/>]", re.IGNORECASE)
_ADDRESS_CHARACTER = re.compile(r"[./]")
_CANDIDATE = re.compile(r"[\s,]*(\S+)\s*")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([wx])")
#: Types that we cannot decode; a <picture> has a fallback for browsers that cannot either.
_UNREADABLE_TYPES = ("image/svg+xml", "image/jxl", "image/jp2", "image/vnd.ms-photo")

#: The size of a candidate: (2, width), (1, density), or (0, 0) for a data: URI, the last resort.
_Size = tuple[int, float]


class PageImage(NamedTuple):
    """One <img> of a page.

    Attributes:
        url: absolute and canonical, or as written where no server could be asked for it; `data:<type>;sha256=<hex>`
            for a data: URI.
        text: as the page has it, entities decoded; empty where the page has none.
        text_source: alt, figcaption, title or aria-label; None where there is no text.
        problem: why there can be no picture; or None.
        inline: the bytes of a data: URI; or None.
    """

    url: str
    text: str
    text_source: str | None
    problem: str | None = None
    inline: bytes | None = None


#: One <img> before its address is resolved: the address as written (empty where the page names none), and the text and
#: its source as in PageImage.
WrittenImage = tuple[str, str, str | None]


def page_images(body: bytes, page_url: str, http_charset: str | None, text_from: Sequence[str]) -> list[PageImage]:
    """Every <img> in document order, resolved against <base href> and the page's URL.

    Args:
        body: the page as served, transfer and content encodings undone.
        page_url: absolute.
        http_charset: of the Content-Type header, if it names one.
        text_from: where to look for the text, see above.
    """
    base, written = written_images(body, http_charset, text_from)
    return resolved(written, page_url, base)


def resolved(written: Sequence[WrittenImage], page_url: str, base: str | None) -> list[PageImage]:
    """The images of a page, addresses resolved; `base` is the href of its <base>, if it has one."""
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
    """The address of an <img> that names no picture: unique, so that such pairs spread over the shards."""
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
    # `values` makes all nodes at once; iterating over the collection walks the tree again for each node
    nodes = document.get_elements_by_tag_name("img").values()
    if not nodes:
        return None, []
    base = document.query_selector("base[href]")  # the first one with an href counts, as in HTML
    has_picture = document.query_selector("picture") is not None
    has_caption = "figcaption" in text_from and document.query_selector("figcaption") is not None
    may_be_lazy = "data-" in text
    images = []
    for node in nodes:
        get = partial(_text_of, node) if has_caption else node.getattr
        images.append((_source(node, has_picture, may_be_lazy), *first_text(get, text_from)))
    return (base.getattr("href") or "").strip() if base is not None else None, images


def first_text(get: Callable[[str], str | None], text_from: Sequence[str]) -> tuple[str, str | None]:
    """The first non-empty text and its source; an empty text and None where there is none."""
    for text_source in text_from:
        text = get(text_source)
        if text and (text[0].isalnum() or normalise(text)):
            return text, text_source
    return "", None


def _text_of(node: Any, text_source: str) -> str | None:
    text: str | None = _figcaption(node) if text_source == "figcaption" else node.getattr(text_source)
    return text


def _figcaption(node: Any) -> str | None:
    """The text of the <figcaption> of the nearest <figure>, not of a figure inside or around that one."""
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
        value = node.getattr(name)  # some scripts store a flag or JSON here
        if value and _ADDRESS_CHARACTER.search(value) and not value.lstrip().startswith(("{", "[")):
            stripped: str = value.strip()
            return stripped
    return None


def _candidates(srcset: str) -> Iterator[tuple[str, _Size]]:
    """Splits a srcset as HTML does: an address ends at white space, so it may contain commas."""
    position = 0
    while match := _CANDIDATE.match(srcset, position):
        url, position = match[1], match.end()
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
    match = _DESCRIPTOR.match(descriptor)
    if match is None:
        return (1, 1.0)
    return (2 if match[2] == "w" else 1, float(match[1]))


def decode_html(body: bytes, http_charset: str | None) -> str:
    """The text of a page in any charset.

    Tried in this order: the byte order mark; UTF-8, if all but a few of the bytes beyond ASCII are valid (in another
    charset that does not happen by chance, while headers are often wrong); the HTTP header; the <meta> tag; detection.
    A charset that the bytes contradict is skipped. A last character that is cut off is no contradiction, because
    crawlers cut long pages. If none fits, the first one that fits all but a few bytes is used; finally Windows-1252.
    """
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            return body.decode(encoding, errors="replace")
    if body.isascii():
        if b"\x1b" not in body and b"\0" not in body:  # neither ISO-2022 escape sequences nor UTF-16
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
    """The text, if at most one in fifty bytes beyond ASCII is invalid in this charset."""
    text = body.decode(encoding, errors="replace")
    num_bytes = len(body) - len(body.translate(None, bytes(range(128, 256))))
    return text if text.count("\ufffd") * 50 <= num_bytes else None


def _decoded(body: bytes, encoding: str) -> str | None:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(body)
    except (UnicodeDecodeError, LookupError):
        return None
