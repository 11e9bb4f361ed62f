"""Bytes of web archives: where records begin, whether the last one is complete, and content encodings."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from typing import Any, BinaryIO

from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader, ZstdReader

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
#: A frame that other readers skip; at the start of a .warc.zst it has the dictionary of all records (IIPC's draft).
_ZSTD_DICTIONARY_MAGIC = b"\x5d\x2a\x4d\x18"
_CHUNK_BYTES = 1 << 16


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
        return member.eof and not (member.unused_data + stream.read()).strip(b"\0")
    head = stream.read(_CHUNK_BYTES)
    header, _, _ = head.partition(b"\r\n\r\n")
    length = next((line for line in header.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
    end = offset + len(header) + 4 + int(length.partition(b":")[2])
    size = stream.seek(0, io.SEEK_END)
    stream.seek(min(end, size))
    return size >= end and not stream.read().strip()


def _is_whole_gzip(stream: BinaryIO) -> bool:
    try:
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while unpacked.read(_CHUNK_BYTES):
                pass
    except (EOFError, OSError, zlib.error):
        return False
    return True


def zstd_dictionary(stream: BinaryIO) -> bytes | None:
    """The dictionary at the start of a file, or None. The stream must be at its start."""
    head = stream.read(8)
    if not head.startswith(_ZSTD_DICTIONARY_MAGIC):
        return None
    frame = stream.read(struct.unpack("<I", head[4:])[0])
    return bytes(ZstdReader(io.BytesIO(frame)).read()) if frame.startswith(_ZSTD_MAGIC) else frame


def zstd_reader(stream: BinaryIO, dictionary: bytes | None) -> Any:
    """Reads a record that may be compressed with a dictionary."""
    return ZstdReader(stream, dictionary=dictionary)


def decoded(body: bytes, headers: Any) -> bytes | None:
    """A body, decoded as its HTTP headers (or None) state; None where that is impossible."""
    if headers is None:
        return body
    encodings = ",".join(headers.get(name) or "" for name in ("Content-Encoding", "Transfer-Encoding"))
    if encodings == ",":
        return body
    try:
        for encoding in reversed([name.strip().lower() for name in encodings.split(",")]):
            stream = io.BytesIO(body)
            match encoding:
                case "" | "identity":
                    continue
                case "chunked":
                    body = ChunkedReader(stream).read()
                case "gzip" | "x-gzip":
                    body = GzipReader(stream).read()
                case "deflate":
                    body = _inflated(body)
                case "br":
                    body = BrotliReader(stream).read()
                case "zstd":
                    body = ZstdReader(stream).read()
                case _:
                    return None
    except (OSError, zlib.error):
        return None
    return body


def _inflated(body: bytes) -> bytes:
    """`deflate` means zlib's format; some servers omit its header."""
    try:
        return zlib.decompress(body)
    except zlib.error:
        return zlib.decompress(body, wbits=-15)
