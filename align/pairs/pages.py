"""An HTML page's bytes -> its pictures: (image URL, alt-text) in page order.

Decisions where pages leave room: `src` alone names the picture (no `srcset`, no lazy-loading attributes); an absent alt
is an empty text; a page that says a wrong charset is read as what its bytes are (see `decode_html`).
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

#: Characters of a URL that stay as they are; all others are percent-encoded, as a browser does before it asks a server.
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"
_PORTS = {"http": ":80", "https": ":443"}
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


@dataclass(frozen=True)
class PageImage:
    """One <img> of a page.

    Attributes:
        url: absolute and canonical, or as written where it is no URL that a server could be asked for.
        alt: with entities decoded, otherwise as found; empty where the page has none.
        problem: why no server could be asked for it, or None.
    """

    url: str
    alt: str
    problem: str | None = None


def page_images(body: bytes, page_url: str, http_charset: str | None) -> list[PageImage]:
    """Every <img> with a src, in document order, resolved against <base href> and the page's URL."""
    document = HTMLTree.parse(decode_html(body, http_charset)).document
    if document is None:
        return []
    base = page_url
    for node in document.get_elements_by_tag_name("base"):
        href = node.getattr("href")
        if href is not None:  # the first one with an href counts, as in HTML
            base = _join(page_url, href) or page_url
            break
    images = []
    for node in document.get_elements_by_tag_name("img"):
        src = (node.getattr("src") or "").strip()
        if src:
            images.append(_resolve(base, src, node.getattr("alt") or ""))
    return images


def _resolve(base: str, src: str, alt: str) -> PageImage:
    if src[:5].lower() == "data:":
        return PageImage(src[:64], alt, "data: URL")
    url = _join(base, src)
    if url is None:
        return PageImage(src[:2048], alt, "invalid URL")
    if urlsplit(url).scheme not in _PORTS:
        return PageImage(url[:2048], alt, "not http or https")
    return PageImage(url, alt)


def _join(base: str, url: str) -> str | None:
    try:
        return canonical_url(urljoin(base, url.strip()))
    except ValueError:
        return None


def canonical_url(url: str) -> str:
    """One spelling per address: no fragment, scheme and host in lower case, no default port, unsafe characters encoded.

    Raises ValueError for what is no URL.
    """
    parts = urlsplit(urldefrag(url.strip())[0])
    host = parts.netloc.lower().removesuffix(_PORTS.get(parts.scheme, "\n"))
    path = parts.path or ("/" if host else "")
    return urlunsplit((parts.scheme, host, quote(path, safe=_URL_SAFE), quote(parts.query, safe=_URL_SAFE), ""))


def decode_html(body: bytes, http_charset: str | None) -> str:
    """The text of a page, whatever its charset.

    In order: the byte order mark; UTF-8 where the bytes are valid UTF-8 beyond ASCII (which happens in no other charset
    by chance, and headers lie); the HTTP header; the <meta> tag; detection. A charset that the bytes contradict is
    passed over. What none of them decodes is read as Windows-1252 with its undefined bytes replaced.
    """
    for bom, encoding in _BOMS:
        if body.startswith(bom):
            return body.decode(encoding, errors="replace")
    utf8 = _decoded(body, "utf-8")
    if utf8 is not None and not utf8.isascii():
        return utf8
    candidates = (
        map_encoding_to_html5(http_charset, False) if http_charset else None,
        detect_encoding(body, from_html_meta=True),
        detect_encoding(body),
    )
    for candidate in candidates:
        text = _decoded(body, candidate) if candidate else None
        if text is not None:
            return text
    return body.decode("cp1252", errors="replace")


def _decoded(body: bytes, encoding: str) -> str | None:
    try:
        return body.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None
