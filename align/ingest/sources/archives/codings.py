"""Content and transfer codings of a body: they are undone if the body really has them.

Many crawlers store a body decoded and keep the headers that the server sent (Webrecorder, Internet Archive, Common
Crawl until 2018), and some servers name a coding that does not exist (`none`, `UTF-8`). So each stated coding is undone
where the bytes have it, and left out where they do not:

* gzip, Zstandard and chunks begin with a mark. A body with the mark has the coding: if it cannot be decoded, it is cut
  off or damaged, and nothing of it is used. A body without it does not have the coding.
* Brotli has no mark, and deflate has one only in its zlib format. A body that cannot be decoded does not have them.
* A body that decodes to nothing and has bytes left does not have the coding: `3` is an empty stream of Brotli, and a
  line `0` looks like the last chunk.

Where a stated coding was left out, the rest must look like what a server sends plain: text, or a usual kind of picture.
Else the body is unreadable: it is cut off or damaged, or has a coding that we do not know.
"""

from __future__ import annotations

import codecs
import io
import re
import zlib
from typing import Any, NamedTuple, Protocol

from fastwarc.stream_io import BrotliReader, GzipReader, ZstdReader

from align.ingest.limits import read_at_most, too_large

#: The most codings of one body; servers apply one or two.
_MAX_CODINGS = 4
_MARKS = {"gzip": b"\x1f\x8b", "x-gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
#: The line before a chunk: its size, and an extension that nobody uses.
_CHUNK = re.compile(rb"[ \t]*+([0-9a-fA-F]{1,16})[ \t]*+(?:;[^\n]*+)?\r?\n")
#: After the line of the last chunk: headers, and an empty line.
_TRAILER = re.compile(rb"(?:[!#$%&'*+.^`|~\w-]++:[^\n]*+\n)*+\r?\n?")
#: Bytes that no text has, by the WHATWG's standard for telling types.
_BINARY = bytes({*range(0x20)} - {*b"\t\n\x0c\r\x1b"})
_LOOKED_AT_BYTES = 512
_TEXT_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
#: How pictures begin, for the kinds that ingest can read and that contain such bytes.
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM", b"\0\0\1\0", b"II*\0", b"MM\0*")


class Headers(Protocol):
    """HTTP headers."""

    def get(self, key: str, /) -> str | None:
        """The first value of a header; the case of its name does not matter."""
        ...


class Decoded(NamedTuple):
    """A body after its codings were undone."""

    data: bytes | None  # None if it is unreadable
    is_absent: bool = False  # the headers state a coding that the body does not have
    is_unknown: bool = False  # they state one that we do not know
    problem: str = ""  # why it is unreadable


class _Nothing(ValueError):
    """A coding that gives nothing, with bytes left."""


def decoded(body: bytes, headers: Headers | None, max_bytes: int) -> Decoded:
    """Undoes the codings that the headers state and the body has.

    Raises TooLarge if the result, or anything on the way, has more than `max_bytes`.
    """
    stated = _stated(headers) if headers is not None and body else []
    if not stated:
        return Decoded(body)
    if len(stated) > _MAX_CODINGS:
        return Decoded(None, problem=f"its headers state {len(stated)} codings")
    is_absent = is_unknown = False
    for coding in reversed(stated):
        if coding not in _DECODERS:
            is_unknown = True
            continue
        has_it = _has_mark(body, coding)
        try:
            if has_it is not False:
                body = _DECODERS[coding](body, max_bytes)
                continue
        except (OSError, ValueError, zlib.error) as error:
            if has_it and not isinstance(error, _Nothing):
                return Decoded(None, problem=f"its coding {coding} cannot be undone: {error}")
        is_absent = True
    if (is_absent or is_unknown) and not _looks_plain(body):
        return Decoded(None, problem=f"its headers state the coding {', '.join(stated)}, its bytes do not have it")
    return Decoded(body, is_absent, is_unknown)


def _stated(headers: Headers) -> list[str]:
    """In the order in which they were applied."""
    values = ",".join(headers.get(name) or "" for name in ("Content-Encoding", "Transfer-Encoding"))
    return [name for name in (part.strip().lower() for part in values.split(",")) if name not in ("", "identity")]


def _has_mark(body: bytes, coding: str) -> bool | None:
    """Whether the body begins as the coding does; None if that cannot be told."""
    if coding == "chunked":
        return _CHUNK.match(body) is not None
    return body.startswith(_MARKS[coding]) if coding in _MARKS else None


def _looks_plain(body: bytes) -> bool:
    head = body[:_LOOKED_AT_BYTES]
    is_text = len(head.translate(None, _BINARY)) == len(head) or head.startswith(_TEXT_BOMS)
    return is_text or head.startswith(PICTURES) or head[4:8] == b"ftyp"


def _ungzipped(body: bytes, max_bytes: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    data = stream.decompress(body, max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    if not stream.eof:
        raise ValueError("cut off")
    if not stream.unused_data.startswith(_MARKS["gzip"]):
        if stream.unused_data and not data:
            raise _Nothing
        return data  # browsers ignore what follows, too
    return read_at_most(GzipReader(io.BytesIO(body)), max_bytes)  # several members; fastwarc's time for them is linear


def _inflated(body: bytes, max_bytes: int) -> bytes:
    """`deflate` means zlib's format; some servers omit its header."""
    for wbits in (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        stream = zlib.decompressobj(wbits)
        try:
            data = stream.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(data) > max_bytes:
            raise too_large(max_bytes)
        if stream.eof and (not stream.unused_data or (wbits > 0 and data)):
            return data
    raise ValueError("neither zlib's format nor its content alone, or cut off")


def _unchunked(body: bytes, max_bytes: int) -> bytes:
    """The chunks together. The last one, which is empty, may be missing."""
    data, position = bytearray(), 0
    while position < len(body):
        chunk = _CHUNK.match(body, position)
        if chunk is None:
            raise ValueError(f"no chunk begins at byte {position:,}")
        size = int(chunk[1], 16)
        if not size:
            trailer = _TRAILER.match(body, chunk.end())
            if not data and trailer and trailer.end() < len(body):
                raise _Nothing
            break
        end = chunk.end() + size
        if end > len(body):
            raise ValueError(f"a chunk of {size:,} bytes is cut off")
        data += body[chunk.end() : end]
        position = end + next((len(ending) for ending in (b"\r\n", b"\n") if body.startswith(ending, end)), 0)
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return bytes(data)


def _unbrotlied(body: bytes, max_bytes: int) -> bytes:
    data: bytes = _unpacked(BrotliReader)(body, max_bytes)
    if not data:
        try:
            _unpacked(BrotliReader)(body[:-1], max_bytes)  # the reader does not say where the stream ends
        except OSError:
            return b""
        raise _Nothing
    return data


def _unpacked(reader: Any) -> Any:
    return lambda body, max_bytes: read_at_most(reader(io.BytesIO(body)), max_bytes)


_DECODERS: dict[str, Any] = {
    "chunked": _unchunked,
    "gzip": _ungzipped,
    "x-gzip": _ungzipped,
    "deflate": _inflated,
    "br": _unbrotlied,
    "zstd": _unpacked(ZstdReader),
}
