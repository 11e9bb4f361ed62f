"""The records of WARC and WAT files, by fastwarc: what each one is, and its body where that is needed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from fastwarc.stream_io import ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.ingest.limits import Readable, TooLarge, read_at_most
from align.ingest.sources import outcomes
from align.ingest.sources.archives.codings import PICTURES
from align.ingest.sources.archives.http_head import MAX_HEAD_BYTES, HttpHead, read_head

RESPONSE, RESOURCE, REVISIT, METADATA, OTHER = "response", "resource", "revisit", "metadata", "other"
_KINDS = {
    int(WarcRecordType.response): RESPONSE,
    int(WarcRecordType.resource): RESOURCE,
    int(WarcRecordType.revisit): REVISIT,
    int(WarcRecordType.metadata): METADATA,
}
_HTML = "text/html"
_HTML_TYPES = (_HTML, "application/xhtml+xml", "text/fragment+html")
#: Types that say nothing of a body: its first bytes are looked at.
_VAGUE = ("", "application/http", "application/octet-stream", "no-type", "unk", "unknown")
#: How HTML begins, by the WHATWG's standard for telling types; also after an XML declaration.
_BEGINS_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?+\s*+(?:<\?xml[^>]*+>\s*+)?+<(?:!--|(?:!doctype\s++html|html|head|script|iframe|h[1-6]|div|font|table|a|"
    rb"style|title|b|body|br|p|img|meta|link|ul|center)[\s/>])",
    re.IGNORECASE,
)
_LOOKED_AT_BYTES = 1 << 13
#: Headers that a record has once. If the end of a record is lost, they are followed by those of the next one.
_ONCE = ("WARC-Type", "Content-Length")
_OK = 200
_CUT_OFF = "the record that starts there is cut off"
#: A record's version, and the name of its first header. The line before it may be lost.
BEGINS = re.compile(rb"WARC/[01]\.\d{1,2}\r?\n[A-Za-z-]{1,40}:")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
#: Python refuses to parse very long numbers.
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.IGNORECASE)


#: How records begin that are compressed.
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: A frame that other readers skip; at the start of a .warc.zst it has the dictionary of all records (IIPC's draft).
ZSTD_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"
#: Bytes of a file's dictionary; `zstd --train` makes 110 KiB.
MAX_DICTIONARY_BYTES = 16 << 20


class NoRecord(OSError):
    """What could be read is not a record, or not a whole one."""


class Record(NamedTuple):
    """One record of an archive."""

    kind: str  # RESPONSE, RESOURCE, REVISIT, METADATA or OTHER
    url: str  # as recorded; empty if the record has none
    offset: int | None  # in the file; None if the file is compressed as a whole
    status: int = 0  # of the HTTP response; 0 if it has none
    content_type: str = ""  # in lower case, without parameters
    charset: str | None = None  # of the content type
    headers: HttpHead | None = None  # of the HTTP response
    same_as: str = ""  # of a revisit: the address whose bytes it repeats
    body: bytes = b""  # of pages and METADATA; if it is larger than the bound, its beginning
    problem: str | None = None  # an outcome, where the record cannot be read

    @property
    def is_page(self) -> bool:
        """HTML with status 200."""
        return self.status == _OK and self.content_type in _HTML_TYPES and self.problem is None


def begins_a_record(stream: BinaryIO) -> bool:
    """Whether the next bytes are the beginning of a record, plain or compressed."""
    head = stream.read(5)
    return head == b"WARC/" or head.startswith((GZIP_MAGIC, ZSTD_MAGIC))


def zstd_dictionary(stream: BinaryIO) -> tuple[int, bytes | None]:
    """Bytes of the frame with the dictionary at the start of a file, and the dictionary; 0 and None if there is none.

    The stream must be at its start. Raises TooLarge for one of more than MAX_DICTIONARY_BYTES, OSError if it cannot be
    decompressed.
    """
    head = stream.read(8)
    if not head.startswith(ZSTD_DICTIONARY_MAGIC):
        return 0, None
    size = int.from_bytes(head[4:], "little")
    if size > MAX_DICTIONARY_BYTES:
        raise TooLarge(f"its dictionary has {size:,} bytes, above {MAX_DICTIONARY_BYTES:,}")
    frame = stream.read(size)
    if frame[:4] == ZSTD_MAGIC:
        frame = read_at_most(ZstdReader(io.BytesIO(frame)), MAX_DICTIONARY_BYTES)
    return 8 + size, frame


def num_bytes(head: bytes) -> int | None:
    """Of an uncompressed record, its header included, by its first bytes; None if they have no whole header."""
    end = _HEADER_END.search(head)
    if end is None:
        return None
    length = _LENGTH.search(head, 0, end.end())
    return end.end() + (int(length[1]) if length else 0)


def walk(
    stream: BinaryIO, head: bytes, begins: Callable[[int], bool], max_bytes: int, size: int | None
) -> Iterator[Record]:
    """Yields every complete record of a file. Holds one record.

    Args:
        stream: of the file. Where reading ends, it is near what cannot be read.
        head: the first bytes of the first record, uncompressed.
        begins: whether a record begins at this byte of the file; does not move the stream.
        max_bytes: of a body; one byte more is read of a larger one.
        size: of the file; None if it is compressed: then checksums tell damage. Else headers are looked at, too.

    Raises:
        OSError: the file is damaged or cut off.
    """
    stream.seek(0)
    last, has_offsets = -1, True  # in a file that is compressed as a whole, fastwarc's have no meaning
    # not by fastwarc: without `quirks` it reads on until a line ends in CRLF, into records that may be damaged
    first = BEGINS.search(head)
    for number, raw in enumerate(iterator(stream, quirks=first is not None and b"\r" not in first[0])):
        if size is not None and any(len(raw.headers.get_multiple(name)) > 1 for name in _ONCE):
            raise NoRecord("the headers of two records are one")
        position = raw.stream_pos
        if position <= last or (number == 1 and not begins(position)):
            has_offsets = False
        last = max(last, position)
        if size is not None and position + raw.content_length > size:
            raise NoRecord(_CUT_OFF)  # now, since fastwarc would read the rest of the file
        record, begin = described(raw, position if has_offsets else None)
        num_read = len(begin) + (len(record.headers.data) if record.headers else 0)
        is_read = record.is_page or record.kind == METADATA
        rest = raw.reader.read(max(0, max_bytes + 1 - len(begin))) if is_read else b""
        if num_read + len(rest) + raw.consume() < raw.content_length:
            raise NoRecord(_CUT_OFF)
        yield record._replace(body=begin + rest) if is_read else record


def iterator(stream: Any, *, quirks: bool) -> Any:
    """fastwarc's records from here on, with their HTTP headers unread.

    With `quirks` it reads WARC headers whose lines end in LF alone, and silently skips what is not a record.
    """
    return ArchiveIterator(
        stream,
        record_types=WarcRecordType.any_type,
        parse_http=False,
        strict_mode=False,
        quirks_mode=quirks,
        max_header_len=MAX_HEAD_BYTES,
    )


def described(raw: Any, offset: int | None) -> tuple[Record, bytes]:  # Any: fastwarc's classes are compiled
    """What a record is, and the first bytes of its body, which are read already. Raises as `walk`."""
    kind, headers = _KINDS.get(int(raw.record_type), OTHER), raw.headers
    url, stated = (headers.get("WARC-Target-URI") or "").strip("<> "), headers.get("Content-Type") or ""
    match kind:
        case "response" if url[:6].lower().startswith(("http:", "https:")):
            return _response(url, offset, raw.reader, headers.get("WARC-Identified-Payload-Type") or stated)
        case "response":  # such as of a DNS server
            return Record(kind, url, offset, content_type=stated.lower()), b""
        case "resource":
            begin = raw.reader.read(_LOOKED_AT_BYTES)
            content_type, charset = _type_of(stated, begin)
            return Record(kind, url, offset, _OK, content_type, charset), begin
        case "revisit":
            same_as = (headers.get("WARC-Refers-To-Target-URI") or "").strip("<> ")
            return Record(kind, url, offset, same_as=same_as), b""
        case _:
            return Record(kind, url, offset), b""


def _response(url: str, offset: int | None, content: Readable, stated: str) -> tuple[Record, bytes]:
    """What a record with a server's answer is, and the first bytes of its body, which are read already.

    Some crawlers store a body without its HTTP head. It counts as an answer of status 200, if its type is stated by the
    record or told by its first bytes.
    """
    record = Record(RESPONSE, url, offset)
    head, begin = read_head(content)
    if head is not None:
        content_type = head.content_type or stated.partition(";")[0].strip().lower()
        charset = head.charset if content_type in _HTML_TYPES else None
        return record._replace(status=head.status, content_type=content_type, charset=charset, headers=head), begin
    if len(begin) > MAX_HEAD_BYTES:
        return record._replace(problem=outcomes.HTTP_HEAD_TOO_LARGE), begin
    content_type, charset = _type_of(stated, begin)
    if not begin or begin.startswith(b"HTTP/") or content_type in _VAGUE:
        return record._replace(problem=outcomes.NO_HTTP_HEAD), begin
    return record._replace(status=_OK, content_type=content_type, charset=charset), begin


def _type_of(stated: str, begin: bytes) -> tuple[str, str | None]:
    """The type of a body, in lower case and without parameters, and its charset; by its first bytes if not stated."""
    content_type, _, parameters = stated.lower().partition(";")
    content_type = content_type.strip()
    if content_type in _VAGUE:
        found = _HTML if _BEGINS_HTML.match(begin) else "image/unknown" if begin.startswith(PICTURES) else content_type
        return found, None
    return content_type, parameters.partition("charset=")[2].strip(" \"'") or None
