"""Bounds on what one record, page or member of a source may cost. They hold for any bytes.

Bytes are bounded by `ingest.max_record_bytes`, as stored and after each decoding. The parser of pages needs time or
memory that grows with the square of some counts, so these are bounded too: by constants, and not by a clock, so that
every machine takes the same pages. A page, picture or member beyond a bound is `TooLarge`: it is counted or becomes a
row with a reason, and the rest of its file is read.
"""

from __future__ import annotations

import re
from typing import Protocol

#: `<` in a page: some 1.5 MB of usual HTML. The worst pages of this size (elements that are never closed, and as many
#: stray end tags) take the parser 3 s, or 6 s in <svg>.
MAX_TAGS = 50_000
#: Attributes of one tag: the parser compares each with all before it.
MAX_TAG_ATTRIBUTES = 4_000
#: Attributes of a page. Each takes some 350 bytes.
MAX_PAGE_ATTRIBUTES = 500_000
#: <figure>s inside each other, where captions are read: the text of a caption includes those inside it.
MAX_NESTED_FIGURES = 32
#: Candidates in all `srcset`s of a page.
MAX_CANDIDATES = 200_000
#: Zero bytes in a page; the parser turns each into three bytes, in several copies.
MAX_ZEROS = 1 << 20
#: Characters in the rows of a page. Each picture of a <figure> repeats its caption, and each picture of a page its
#: address.
MAX_PAGE_CHARACTERS = 64 << 20
#: Texts of one row of a table, or of one picture of a JSON file. Rule I4 keeps no picture with more than a thousand.
MAX_TEXTS = 10_000
#: A <base> of more characters is ignored, like one that is not an address.
MAX_BASE_CHARACTERS = 2_048

#: Shorter pages have at most about 16,000 attributes, which take 0.5 s if one tag has them all: they are not checked.
_SMALL_PAGE = 1 << 16
#: Tags with at most so many characters cannot have more than MAX_PAGE_ATTRIBUTES.
_FEW_TAG_CHARACTERS = 4 * MAX_PAGE_ATTRIBUTES
#: Characters of repeated <html> and <body> tags, whose attributes the parser merges.
_MAX_ROOT_CHARACTERS = 1 << 16
#: How often the same characters are looked at, where tags appear to begin inside tags.
_MAX_LOOKS = 16

_SPACE = r"[\t\n\f\r ]"
_ATTRIBUTE = (
    rf"[\t\n\f\r /]*+[^\t\n\f\r />][^\t\n\f\r />=]*+"
    rf"(?:{_SPACE}*+={_SPACE}*+(?:\"[^\"]*+\"?|'[^']*+'?|[^\t\n\f\r >]*+))?+"
)
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
_TAG = re.compile(rf"<(html|body)?[^\t\n\f\r />]*+(?:{_ATTRIBUTE}){{0,{MAX_TAG_ATTRIBUTES}}}+", re.IGNORECASE)
#: A usual tag: well-formed attributes, and a `>` before the next `<`. The parser finds no longer tag here and no tag
#: inside, no matter what comes before: such tags have fewer characters together than the page.
_PLAIN_ATTRIBUTE = (
    r"[\t\n\f\r ]++[^\t\n\f\r \"'<>/=]++(?:=(?:\"[^\"<]*+\"|'[^'<]*+'|[^\t\n\f\r \"'<>][^\t\n\f\r <>]*+))?+"
)
_PLAIN_TAG = rf"[a-zA-Z][^\t\n\f\r \"'<>/=]*+(?:{_PLAIN_ATTRIBUTE}){{0,{MAX_TAG_ATTRIBUTES}}}+[\t\n\f\r ]*+/?+>"
_ROOT_NAME = r"[hH][tT][mM][lL]|[bB][oO][dD][yY]"
#: The place where any other tag may begin, or a tag of the page's root.
_ODD_TAG_START = re.compile(rf"<(?=[a-zA-Z])(?:(?={_ROOT_NAME})|(?!{_PLAIN_TAG}))")
_TAG_START = re.compile(r"<(?=[a-zA-Z])")


class TooLarge(Exception):
    """A record, page or member beyond a bound; the message is the reason of its row."""


class Readable(Protocol):
    """A stream of bytes, perhaps decoded on the way. A read may give fewer bytes than asked for."""

    def read(self, size: int = ..., /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


def read_at_most(stream: Readable, max_bytes: int, begin: bytes = b"") -> bytes:
    """What was read of a stream (`begin`) and its rest. Holds no more than `max_bytes` and one block.

    Raises:
        TooLarge: there is more than `max_bytes`.
        What the stream raises.
    """
    pieces = [begin] if begin else []
    left = max_bytes + 1 - len(begin)
    while left > 0 and (piece := stream.read(left)):
        pieces.append(piece)
        left -= len(piece)
    if left <= 0:
        raise too_large(max_bytes)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def too_large(max_bytes: int) -> TooLarge:
    """The error for more than `max_bytes` bytes."""
    return TooLarge(f"too large: more than {max_bytes:,} bytes, see ingest.max_record_bytes")


def check_page(text: str) -> None:
    """Whether the parser can read the page in bounded time and memory.

    Every `<` with a letter counts as the beginning of a tag, even in comments, scripts and attributes: which of them
    the parser takes for a tag depends on everything before.

    Raises:
        TooLarge: it may not.
    """
    num_tags = text.count("<")
    if num_tags > MAX_TAGS:
        raise TooLarge(f"too large: a page with {num_tags:,} tags, above {MAX_TAGS:,}")
    if len(text) <= _SMALL_PAGE:
        return
    if text.count("\0") > MAX_ZEROS:
        raise TooLarge(f"too large: a page with more than {MAX_ZEROS:,} zero bytes")
    num_characters = _look_at(text)
    if len(text) + num_characters > _FEW_TAG_CHARACTERS:
        spans = [tag.span() for start in _TAG_START.finditer(text) if (tag := _TAG.match(text, start.start()))]
        num_attributes = sum(sum(1 for _ in _ONE_ATTRIBUTE.finditer(text, *span)) for span in spans)
        if num_attributes > MAX_PAGE_ATTRIBUTES:
            raise TooLarge(f"too large: a page with {num_attributes:,} attributes, above {MAX_PAGE_ATTRIBUTES:,}")


def _look_at(text: str) -> int:
    """The characters of the tags that are not usual ones. Characters that lie in several tags count in each.

    Raises:
        TooLarge: a tag has too many attributes, or the tags have too many characters.
    """
    num_characters = num_root_characters = 0
    for start in _ODD_TAG_START.finditer(text):
        tag = _TAG.match(text, start.start())
        if tag is None:  # never: it matches wherever a tag may begin
            continue
        if _ONE_ATTRIBUTE.match(text, tag.end()):
            raise TooLarge(f"too large: a tag with more than {MAX_TAG_ATTRIBUTES:,} attributes")
        size = tag.end() - tag.start()
        num_characters += size
        num_root_characters += size if tag[1] else 0
        if num_characters > _MAX_LOOKS * len(text) or num_root_characters > _MAX_ROOT_CHARACTERS:
            raise TooLarge("too large: a page whose tags cannot be told apart in bounded time")
    return num_characters
