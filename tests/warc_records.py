"""Web archives written by hand: records as the WARC standard has them, so that no reader is tested by itself."""

import gzip
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from PIL import Image


def response(url: str, body: bytes, content_type: str, status: str = "200 OK", headers: str = "") -> bytes:
    """One WARC response record, uncompressed."""
    http = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        + body
    )
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{zlib.crc32(url.encode()):032x}>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def page(url: str, html: str | bytes, content_type: str = "text/html; charset=utf-8", headers: str = "") -> bytes:
    return response(url, html.encode() if isinstance(html, str) else html, content_type, headers=headers)


def write_archive(path: Path, records: Iterable[bytes]) -> Path:
    """gzip per record."""
    path.write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    return path


def picture(width: int, height: int, colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels: 200 megapixels in 57 bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + data + struct.pack(">I", zlib.crc32(data))
