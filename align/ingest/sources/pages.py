"""An HTML page's bytes -> its pictures: address and text of every <img>, in page order.

Decisions where HTML allows several readings:

* The address is the largest candidate of `srcset` and of the `<source>`s of an enclosing <picture>: by width (`800w`)
  where any states one, else by density (`2x`). `sizes` and `media` describe a screen, which we do not have. Of equal
  candidates `src` comes first, then the <img>'s own `srcset`: the most compatible format.
* Lazy loading: `src` has a placeholder until a script copies the true address from one of LAZY_SRC (LAZY_SRCSET). Where
  such an attribute looks like an address, it is used instead of `src` (`srcset`). A `data:` URI is used only where no
  other address is named. Images in <noscript> count, those in <template> do not.
* The text is the first non-empty one of `alt`, the <figcaption> of the enclosing <figure>, `title`, `aria-label` (as
  configured); white space and control characters count as empty. It is kept as the page has it, entities decoded. Or
  each of these texts gives a pair.
* A page that states a wrong charset is decoded by what its bytes are (see `charset`).

The work is linear in the page's size for any page; one beyond the bounds of `limits` is refused. Elements of formatting
(<b>, <a>, ...) are renamed before the page is parsed: where they are left open, HTML repeats all of them in every
paragraph that follows, so that a page of 25 kB would take 3 GB. They decide neither pictures nor texts.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from align.ingest import limits
from align.ingest.sources.rights import MARKS, Rights, of_page
from align.ingest.sources.texts import Sourced, distinct
from align.pairs.text import normalise
from align.pairs.urls import Address, Resolver

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
#: Python's codecs of these names cover less than what browsers (and so pages) mean by them.
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs", "iso8859-11": "cp874"}


def decode_html(body: bytes, http_charset: str | None) -> str:
    """The text of a page in any charset.

    Tried in this order: the byte order mark; UTF-8, if all but a few of the bytes beyond ASCII are valid (in another
    charset that does not happen by chance, while headers are often wrong); the HTTP header; the <meta> tag; detection.
    A charset that the bytes contradict is skipped. A last character that is cut off does not contradict it, because
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
    for decode in (_decoded, _nearly_decoded):
        for encoding in encodings:
            text = decode(body, encoding)
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


#: Attributes in which the usual scripts for lazy loading keep the address (lazysizes, WordPress, Cloudflare, ...).
LAZY_SRC = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-full-src", "data-echo",
    "data-lsrc", "data-img-url", "data-cfsrc", "data-gt-lazy-src", "data-pagespeed-lazy-src", "data-ezsrc",
    "data-orig-src", "data-wpfc-original-src",
)  # fmt: skip
LAZY_SRCSET = ("data-srcset", "data-lazy-srcset", "data-original-set", "data-ezsrcset", "data-wpfc-original-srcset")
_LAZY = frozenset(LAZY_SRC + LAZY_SRCSET)

#: A page without a match has no image and is not parsed (<image> becomes <img>).
_IMAGE_TAG = re.compile(rb"<ima?ge?[\s/>]", re.IGNORECASE)
_ADDRESS_CHARACTER = re.compile(r"[./]")
_CANDIDATE = re.compile(r"[\s,]*(\S+)\s*")
_DESCRIPTOR = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([wx])")
#: Types that we cannot decode; a <picture> has a fallback for browsers that cannot either.
_UNREADABLE_TYPES = ("image/svg+xml", "image/jxl", "image/jp2", "image/vnd.ms-photo")

#: Tags of HTML's formatting elements, up to the end of their names. Those in scripts, comments and attributes are
#: found, too; they are renamed back in what a page gives. Both cases are written out, so that `re` looks for `<` alone,
#: which is faster.
_FORMATTING = re.compile(
    r"(</?(?=[abcefinstuABCEFINSTU])(?:[abisuABISU]|[bB][iI][gG]|[cC][oO][dD][eE]|[eE][mM]|[fF][oO][nN][tT]"
    r"|[nN][oO][bB][rR]|[sS](?:[mM][aA][lL][lL]|[tT][rR][iI][kK][eE]|[tT][rR][oO][nN][gG])|[tT][tT]))"
    r"(?=[\t\n\f\r />])"
)
#: A private character: it may be part of an element's name, and no page uses it.
_RENAMED = "\ue000"
_RENAMED_FORMATTING = re.compile(_FORMATTING.pattern.rpartition("(?=")[0] + _RENAMED)

#: The size of a candidate: (2, width), (1, density), or (0, 0) for a data: URI, the last resort.
_Size = tuple[int, float]


class PageImage(NamedTuple):
    """One <img> of a page."""

    #: Absolute and canonical, or as written where no server could be asked for it; `data:<type>;sha256=<hex>` for a
    #: data: URI.
    url: str
    text: str  # as the page has it, entities decoded; empty if the page has none
    text_source: str | None  # alt, figcaption, title or aria-label; None if there is no text
    problem: str | None = None  # why there can be no picture
    inline: bytes | None = None  # the bytes of a data: URI


#: One <img> before its address is resolved: the address as written (empty if the page names none), and the text and
#: its source as in PageImage.
WrittenImage = tuple[str, str, str | None]


def page_images(
    body: bytes, page_url: str, http_charset: str | None, text_from: Sequence[str], *, every: bool = False
) -> tuple[list[PageImage], Rights]:
    """Every <img> in document order, resolved against <base href> and the page's URL; and what the page says of them.

    Args:
        body: the page as served, transfer and content encodings undone.
        page_url: absolute.
        http_charset: of the Content-Type header, if it names one.
        text_from: where to look for the text, see above.
        every: an image for each of its texts.

    Raises:
        TooLarge: the page is beyond a bound.
    """
    if not _IMAGE_TAG.search(body) and not body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return [], Rights()
    text = decode_html(body, http_charset)
    limits.check_page(text)
    document = HTMLTree.parse(_renamed(text)).document
    if document is None:
        return [], Rights()
    # `values` makes all nodes at once; iterating over the collection walks the tree again for each node
    nodes = document.get_elements_by_tag_name("img").values()
    if not nodes:
        return [], Rights()
    first_base = document.query_selector("base[href]")  # the first one with an href counts, as in HTML
    base = None if first_base is None else _original(first_base.getattr("href") or "").strip()
    may_be_lazy = "data-" in text
    pictures = _Candidates(document, may_be_lazy)
    captions = _Captions(document) if "figcaption" in text_from else None
    written: list[WrittenImage] = []
    for node in nodes:
        get = partial(_text_of, node, captions) if captions else node.getattr
        address = _original(_source(node, pictures, may_be_lazy))
        written += [(address, _original(text), name) for text, name in texts_of_image(get, text_from, every=every)]
    lower = text.lower()
    rights = _rights(document, resolver_of(page_url, base)) if any(mark in lower for mark in MARKS) else Rights()
    return resolved(written, page_url, base), rights


def resolved(written: Sequence[WrittenImage], page_url: str, base: str | None) -> list[PageImage]:
    """The images of a page, addresses resolved; `base` is the href of its <base>, if it has one.

    Raises TooLarge if the rows have too many characters together.
    """
    of_each = 2 * len(page_url) + min(len(base or ""), limits.MAX_BASE_CHARACTERS)
    num_characters = of_each * len(written) + sum(len(source) + len(text) for source, text, _ in written)
    if num_characters > limits.MAX_PAGE_CHARACTERS:
        raise limits.TooLarge(f"too large: a page whose {len(written):,} pictures repeat long texts or addresses")
    resolver = resolver_of(page_url, base)
    images: list[PageImage] = []
    last: str | None = None
    address: Address | None = None
    for number, (source, text, text_source) in enumerate(written):
        url = resolver.simply_joined(source)
        if url is not None:
            images.append(PageImage(url, text, text_source))
            continue
        if address is None or not source or source is not last:  # another text of one picture: its bytes are shared
            address = resolver.resolve(source) if source else _no_address(page_url, number)
        last = source
        images.append(PageImage(address.url, text, text_source, address.problem, address.inline))
    return images


def _no_address(page_url: str, number: int) -> Address:
    """The address of an <img> that names no picture: unique, so that such pairs spread over the shards."""
    return Address(f"{page_url[:2048]}#img-{number}", "no address")


def resolver_of(page_url: str, base: str | None) -> Resolver:
    """Resolves against a page's URL and the href of its <base>, if it has a usable one."""
    resolver = Resolver(page_url)
    if base and len(base) <= limits.MAX_BASE_CHARACTERS:
        try:
            return Resolver(resolver.joined(base))
        except ValueError:
            pass
    return resolver


def _rights(document: Any, resolver: Resolver) -> Rights:
    metas, *links = (document.get_elements_by_tag_name(name).values() for name in ("meta", f"a{_RENAMED}", "link"))
    return of_page(
        ((node.getattr("name") or "", node.getattr("content") or "") for node in metas),
        ((node.getattr("rel") or "", node.getattr("href") or "") for nodes in links for node in nodes),
        resolver,
    )


def _renamed(text: str) -> str:
    """The page with other names for the elements of formatting."""
    fragments = _FORMATTING.split(text)
    fragments[1::2] = [tag + _RENAMED for tag in fragments[1::2]]
    return "".join(fragments)


def _original(value: str) -> str:
    """A text of the page with all elements in it renamed back."""
    return _RENAMED_FORMATTING.sub(r"\1", value) if _RENAMED in value else value


def texts_of_image(get: Callable[[str], str | None], text_from: Sequence[str], *, every: bool) -> list[Sourced]:
    """The first non-empty text and its source, or with `every` all; an empty text and None if there is none."""
    texts = ((text, text_source) for text_source in text_from if (text := get(text_source)))
    said = ((text, name) for text, name in texts if text[0].isalnum() or normalise(text))
    return distinct(said) if every else [next(said, ("", None))]


def _text_of(node: Any, captions: _Captions, text_source: str) -> str | None:
    text: str | None = captions.of(node) if text_source == "figcaption" else node.getattr(text_source)
    return text


def _source(node: Any, pictures: _Candidates, may_be_lazy: bool) -> str:
    """The largest candidate, as written."""
    is_lazy = may_be_lazy and not _LAZY.isdisjoint(node.attrs)
    best = (_lazy(node, LAZY_SRC) if is_lazy else None) or (node.getattr("src") or "").strip()
    own = (_lazy(node, LAZY_SRCSET) if is_lazy else None) or node.getattr("srcset")
    of_picture = pictures.largest(node)
    if not own and of_picture is None:
        return best
    candidates = chain([(best, _size(best, ""))], pictures.candidates(own or ""), [of_picture] if of_picture else [])
    return max(candidates, key=itemgetter(1))[0]  # the first of equals


class _Nearest:
    """The nearest element of one name around each node. Each node of the tree is looked at once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._found: dict[Any, Any] = {}

    def of(self, node: Any) -> Any | None:
        """The element, which may be the node itself; None if there is none."""
        path = []
        while node is not None and node not in self._found:
            if node.tag == self._name:
                self._found[node] = node
                break
            path.append(node)
            node = node.parent
        found = None if node is None else self._found[node]
        self._found.update(dict.fromkeys(path, found))
        return found


class _Captions:
    """The texts of a page's <figcaption>s, by picture."""

    def __init__(self, document: Any) -> None:
        self._figures = _Nearest("figure")
        self._captions: dict[Any, Any] = {}  # of each figure; its text once it is needed
        for caption in document.get_elements_by_tag_name("figcaption").values():
            figure = self._figures.of(caption)
            if figure is not None:
                self._captions.setdefault(figure, caption)

    def __len__(self) -> int:
        return len(self._captions)

    def of(self, node: Any) -> str | None:
        """The text of the caption of the nearest <figure>, not of a figure inside or around that one."""
        figure = self._figures.of(node)
        caption = self._captions.get(figure) if figure is not None else None
        if caption is not None and not isinstance(caption, str):
            self._check_nesting(figure)
            caption = self._captions[figure] = caption.text
        text: str | None = caption
        return text

    def _check_nesting(self, figure: Any) -> None:
        for _ in range(limits.MAX_NESTED_FIGURES):
            figure = self._figures.of(figure.parent)
            if figure is None:
                return
        raise limits.TooLarge(f"too large: a page with more than {limits.MAX_NESTED_FIGURES} figures inside each other")


class _Candidates:
    """The candidates of a page's pictures: of each `srcset`, and the largest of each <picture>'s <source>s."""

    def __init__(self, document: Any, may_be_lazy: bool) -> None:
        self._num_candidates = 0
        self._pictures = _Nearest("picture")
        self._largest: dict[Any, tuple[str, _Size]] = {}
        for source in document.get_elements_by_tag_name("source").values():
            picture = self._pictures.of(source)
            if picture is None or (source.getattr("type") or "").strip().lower() in _UNREADABLE_TYPES:
                continue
            srcset = (_lazy(source, LAZY_SRCSET) if may_be_lazy else None) or source.getattr("srcset") or ""
            for url, size in self.candidates(srcset):
                if picture not in self._largest or size > self._largest[picture][1]:
                    self._largest[picture] = (url, size)

    def candidates(self, srcset: str) -> Iterator[tuple[str, _Size]]:
        """Those of a `srcset`. Raises TooLarge if the page has too many."""
        for candidate in _candidates(srcset):
            self._num_candidates += 1
            if self._num_candidates > limits.MAX_CANDIDATES:
                raise limits.TooLarge(f"too large: a page with more than {limits.MAX_CANDIDATES:,} srcset candidates")
            yield candidate

    def largest(self, node: Any) -> tuple[str, _Size] | None:
        """The candidate and its size; None if the picture is not in a <picture> or names none."""
        picture = self._pictures.of(node) if self._largest else None
        return None if picture is None else self._largest.get(picture)


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
