"""Bytes of web archives: where records begin, whether the last one is complete, and content encodings."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import Any, BinaryIO

from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader, ZstdReader

from align.ingest.limits import TooLarge, read_at_most, too_large

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: A frame that other readers skip; at the start of a .warc.zst it has the dictionary of all records (IIPC's draft).
_ZSTD_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"
_CHUNK_BYTES = 1 << 16
#: Of the dictionary of a file; `zstd --train` makes 110 KiB.
MAX_DICTIONARY_BYTES = 16 << 20
#: Of a length; Python refuses to parse very many.
_MAX_DIGITS = 19
#: Encodings of one body; servers apply one or two.
_MAX_ENCODINGS = 4
_READERS: dict[str, Any] = {
    "chunked": ChunkedReader,
    "gzip": GzipReader,
    "x-gzip": GzipReader,
    "br": BrotliReader,
    "zstd": ZstdReader,
}


def begins_a_record(stream: BinaryIO) -> bool:
    """Whether the next bytes are the beginning of a record, plain or compressed."""
    head = stream.read(5)
    return head == b"WARC/" or head.startswith((_GZIP_MAGIC, _ZSTD_MAGIC))


def ends_well(stream: BinaryIO, offset: int | None) -> bool:
    """Whether the rest of the file is one complete record. (Where a header is cut off, fastwarc reports no error.)

    Args:
        stream: seekable.
        offset: of the record; None for a file that is compressed as a whole.
    """
    stream.seek(offset or 0)
    head = stream.read(4)
    if head in (_ZSTD_MAGIC, _ZSTD_DICTIONARY_MAGIC):
        return True  # fastwarc reports every incomplete frame of these
    stream.seek(offset or 0)
    if offset is None:
        return _is_whole_gzip(stream)
    if head.startswith(_GZIP_MAGIC):
        member = zlib.decompressobj(wbits=31)
        while not member.eof and (chunk := stream.read(_CHUNK_BYTES)):
            member.decompress(chunk)
        return member.eof and not member.unused_data.strip(b"\0") and _is_filled_with(stream, b"\0")
    head = stream.read(_CHUNK_BYTES)
    header, _, _ = head.partition(b"\r\n\r\n")
    length = next((line for line in header.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
    digits = length.partition(b":")[2].strip()
    end = offset + len(header) + 4 + (int(digits) if digits.isdigit() and len(digits) < _MAX_DIGITS else 0)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(min(end, size))
    return size >= end and _is_filled_with(stream, b" \t\n\r\x0b\f")


def _is_filled_with(stream: BinaryIO, characters: bytes) -> bool:
    """Whether the rest of the file has only these bytes."""
    while chunk := stream.read(_CHUNK_BYTES):
        if chunk.strip(characters):
            return False
    return True


def _is_whole_gzip(stream: BinaryIO) -> bool:
    try:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while unpacked.read(_CHUNK_BYTES):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True


def zstd_dictionary(stream: BinaryIO) -> bytes | None:
    """The dictionary at the start of a file, or None. The stream must be at its start.

    Raises:
        TooLarge: there is one of more than MAX_DICTIONARY_BYTES.
        OSError: it cannot be decompressed.
    """
    head = stream.read(8)
    if not head.startswith(_ZSTD_DICTIONARY_MAGIC):
        return None
    size = int.from_bytes(head[4:], "little")
    if size > MAX_DICTIONARY_BYTES:
        raise TooLarge(f"its dictionary has {size:,} bytes, above {MAX_DICTIONARY_BYTES:,}")
    frame = stream.read(size)
    return read_at_most(ZstdReader(io.BytesIO(frame)), MAX_DICTIONARY_BYTES) if frame[:4] == _ZSTD_MAGIC else frame


def zstd_reader(stream: BinaryIO, dictionary: bytes | None) -> Any:
    """Reads a record that may be compressed with a dictionary."""
    return ZstdReader(stream, dictionary=dictionary)


def decoded(body: bytes, headers: Any, max_bytes: int) -> bytes | None:
    """A body, decoded as its HTTP headers (or None) state; None where that is impossible.

    Raises:
        TooLarge: a decoding gives more than `max_bytes`.
    """
    if headers is None:
        return body
    stated = ",".join(headers.get(name) or "" for name in ("Content-Encoding", "Transfer-Encoding"))
    encodings = [name for name in (part.strip().lower() for part in stated.split(",")) if name not in ("", "identity")]
    if len(encodings) > _MAX_ENCODINGS:
        return None
    try:
        for encoding in reversed(encodings):
            if encoding == "deflate":
                body = _inflated(body, max_bytes)
            elif encoding in _READERS:
                body = read_at_most(_READERS[encoding](io.BytesIO(body)), max_bytes)
            else:
                return None
    except (OSError, zlib.error):
        return None
    return body


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
        if stream.eof:
            return data
    raise zlib.error("neither zlib's format nor its content alone, or cut off")
