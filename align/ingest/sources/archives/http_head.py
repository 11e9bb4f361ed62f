"""The head of an HTTP response as archives have it: status line and headers.

Lines end in CRLF, or in LF alone as some crawlers write them, or in both kinds. A head is read in one pass and in no
more than MAX_HEAD_BYTES.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from align.ingest.limits import Readable

#: Bytes of HTTP headers, and of the headers of a WARC record. Crawlers stop earlier.
MAX_HEAD_BYTES = 1 << 20
_FIRST_BYTES = 1 << 13

_STATUS = re.compile(rb"HTTP(?:/\d{1,2}(?:\.\d{1,2})?)?[ \t]+(\d{3})(?!\d)", re.IGNORECASE)
_END = re.compile(rb"\n\r*\n")
#: A head without an empty line at its end: all of it looks like headers.
_ONLY_HEADERS = re.compile(rb"[^\n]*+(?:\n(?:[ \t][^\n]*+|[!#$%&'*+.^`|~\w-]++[ \t]*+:[^\n]*+|\r*+))*+")
_CHARSET = re.compile(r"[;,\s]charset\s*=[\s\"']*([^\"'\s;,]+)", re.IGNORECASE)


class HttpHead(NamedTuple):
    """A response's status and headers."""

    status: int  # three digits
    data: bytes  # of the head, its empty line included; the body begins after them

    def get(self, name: str, default: str | None = None) -> str | None:
        """The first header of this name, in upper or lower case; folded lines are joined by a space."""
        return next(iter(self.all(name)), default)

    def all(self, name: str) -> list[str]:
        """All headers of this name, as `get`."""
        pattern = rb"\n" + re.escape(name.encode()) + rb"[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)"
        found = re.findall(pattern, self.data, re.IGNORECASE)
        return [text_of(b" ".join(map(bytes.strip, value.split(b"\n")))) for value in found]

    @property
    def content_type(self) -> str:
        """In lower case, without parameters; empty if none is named."""
        return re.split("[;,]", self.get("Content-Type") or "", maxsplit=1)[0].strip().lower()

    @property
    def charset(self) -> str | None:
        """The charset of the content type, in lower case and without quotes."""
        match = _CHARSET.search(self.get("Content-Type") or "")
        return match[1].lower() if match else None


def text_of(value: bytes) -> str:
    """A header's value; one that is not UTF-8 is read as Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def parse_head(data: bytes) -> HttpHead | None:
    """The head at the beginning of a whole response; None if there is none.

    A response that ends in its head may lack the empty line.
    """
    status = _STATUS.match(data)
    if status is None:
        return None
    end = _END.search(data, 0, MAX_HEAD_BYTES)
    if end is not None:
        return HttpHead(int(status[1]), data[: end.end()])
    if len(data) > MAX_HEAD_BYTES or not _ONLY_HEADERS.fullmatch(data):
        return None
    return HttpHead(int(status[1]), data)


def read_head(stream: Readable) -> tuple[HttpHead | None, bytes]:
    """The head of a response, and the bytes that were read after it.

    Where there is no head, these are all bytes that were read. What the stream raises is passed on.
    """
    data = bytearray()
    wanted, is_more = _FIRST_BYTES, True
    while is_more:
        while len(data) < wanted and (chunk := stream.read(wanted - len(data))):
            data += chunk
        is_more = len(data) >= wanted and wanted <= MAX_HEAD_BYTES
        if not is_more or not _STATUS.match(data) or _END.search(data):
            break
        wanted = min(2 * wanted, MAX_HEAD_BYTES + 1)  # so that all searches together are linear
    head = parse_head(bytes(data))
    return head, bytes(data[len(head.data) if head else 0 :])
