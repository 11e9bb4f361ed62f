"""Bounds on what one record, page or member of a source may cost. They hold for any bytes.

Bytes are bounded by `ingest.max_record_bytes`, as stored and after each decoding. The parser of pages needs time or
memory that grows with the square of some counts, so these are bounded too: by constants, and not by a clock, so that
every machine takes the same pages. A page, picture or member beyond a bound is `TooLarge`: it is counted or becomes a
row with a reason, and the rest of its file is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
#: In fewer characters of tags, attributes are not counted: they would be twice MAX_PAGE_ATTRIBUTES at most.
_FEW_TAG_CHARACTERS = 4 * MAX_PAGE_ATTRIBUTES
#: Characters of repeated <html> and <body> tags, whose attributes the parser merges.
_MAX_ROOT_CHARACTERS = 1 << 16
#: Characters of unusual tags, by those of the page: a tag that seems to begin inside another repeats its characters.
_MAX_REPEATED = 16

_SPACE = r"[\t\n\f\r ]"
_ATTRIBUTE = (
    rf"[\t\n\f\r /]*+[^\t\n\f\r />][^\t\n\f\r />=]*+"
    rf"(?:{_SPACE}*+={_SPACE}*+(?:\"[^\"]*+\"?|'[^']*+'?|[^\t\n\f\r >]*+))?+"
)
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
_TAG = re.compile(rf"<(html|body)?[^\t\n\f\r />]*+(?:{_ATTRIBUTE}){{0,{MAX_TAG_ATTRIBUTES}}}+", re.IGNORECASE)
_TAG_START = re.compile(r"<(?=[a-zA-Z])")
#: A usual tag ends at the first `>`, whatever comes before it: quotes are whole values. It has at most as many
#: attributes as parts.
_USUAL = (
    r"(?!(?i:html|body))[a-zA-Z](?:[^<>\"'=\s/]++|[\s/]++|=(?:\"[^\"<>]*+\"|'[^'<>]*+')?+)"
    rf"{{0,{MAX_TAG_ATTRIBUTES}}}+>"
)
_UNUSUAL_START = re.compile(rf"<(?=[a-zA-Z])(?!{_USUAL})")


class TooLarge(Exception):
    """A record, page or member beyond a bound; the message is the reason of its row."""


class Readable(Protocol):
    """A stream of bytes, perhaps decoded on the way. A read may give fewer bytes than asked for."""

    def read(self, size: int = ..., /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


def read_at_most(stream: Readable, max_bytes: int, begin: bytes = b"") -> bytes:
    """What was read of a stream (`begin`) and its rest. Holds no more than `max_bytes` and one block.

    Raises TooLarge if there is more than `max_bytes`, and what the stream raises.
    """
    chunks = [begin] if begin else []
    left = max_bytes + 1 - len(begin)
    while left > 0 and (chunk := stream.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    if left <= 0:
        raise too_large(max_bytes)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(max_bytes: int) -> TooLarge:
    """The error for more than `max_bytes` bytes."""
    return TooLarge(f"too large: more than {max_bytes:,} bytes, see ingest.max_record_bytes")


def check_page(text: str) -> None:
    """Raises TooLarge if the parser may not read the page in bounded time and memory.

    Every `<` with a letter counts as the beginning of a tag, even in comments, scripts and attributes: which of them
    the parser takes for a tag depends on everything before.
    """
    num_tags = text.count("<")
    if num_tags > MAX_TAGS:
        raise TooLarge(f"too large: a page with {num_tags:,} tags, above {MAX_TAGS:,}")
    if len(text) <= _SMALL_PAGE:
        return
    if text.count("\0") > MAX_ZEROS:
        raise TooLarge(f"too large: a page with more than {MAX_ZEROS:,} zero bytes")
    num_characters = num_root_characters = 0
    for tag in _tags(text, _UNUSUAL_START):
        if _ONE_ATTRIBUTE.match(text, tag.end()):
            raise TooLarge(f"too large: a tag with more than {MAX_TAG_ATTRIBUTES:,} attributes")
        num_characters += tag.end() - tag.start()
        num_root_characters += tag.end() - tag.start() if tag[1] else 0
        if num_characters > _MAX_REPEATED * len(text) or num_root_characters > _MAX_ROOT_CHARACTERS:
            raise TooLarge("too large: a page whose tags cannot be told apart in bounded time")
    if len(text) + num_characters > _FEW_TAG_CHARACTERS:
        num_attributes = sum(1 for tag in _tags(text, _TAG_START) for _ in _ONE_ATTRIBUTE.finditer(text, *tag.span()))
        if num_attributes > MAX_PAGE_ATTRIBUTES:
            raise TooLarge(f"too large: a page with {num_attributes:,} attributes, above {MAX_PAGE_ATTRIBUTES:,}")


def _tags(text: str, begin: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """What may be a tag where `begin` matches, each to its end or to MAX_TAG_ATTRIBUTES attributes."""
    for start in begin.finditer(text):
        if tag := _TAG.match(text, start.start()):
            yield tag
