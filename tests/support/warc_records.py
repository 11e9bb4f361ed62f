"""Web archives written by hand: records as the WARC standard has them, so that no reader is tested by itself."""

import gzip
import io
import json
import struct
import tempfile
import zlib
from pathlib import Path

from fastwarc.stream_io import BrotliWriter, ZstdWriter
from PIL import Image


def response(url, body, content_type, status="200 OK", headers=""):
    """One WARC response record, uncompressed."""
    http = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode()
        + body
    )
    return record("response", url, http, "application/http; msgtype=response")


def record(kind, url, content, content_type, headers=""):
    """One WARC record of any type, uncompressed."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{zlib.crc32(url.encode()):032x}>\r\n{headers}"
        f"Content-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content + b"\r\n\r\n"


def page(url, html, content_type="text/html; charset=utf-8", headers=""):
    return response(url, html.encode() if isinstance(html, str) else html, content_type, headers=headers)


def wat(url, links, base=None, status="200"):
    """The record of a WAT for one page, in the shape of Common Crawl's."""
    head = {"Title": "A page", **({"Base": base} if base else {})}
    envelope = {
        "Format": "WARC",
        "WARC-Header-Metadata": {"WARC-Type": "response", "WARC-Target-URI": url, "Content-Length": "1000"},
        "Payload-Metadata": {
            "Actual-Content-Type": "application/http; msgtype=response",
            "HTTP-Response-Metadata": {
                "Headers": {"Content-Type": "text/html"},
                "Response-Message": {"Version": "HTTP/1.1", "Status": status, "Reason": "OK"},
                "HTML-Metadata": {"Head": head, "Links": links},
                "Entity-Length": "900",
            },
        },
    }
    container = {"Compressed": True, "Filename": "CC-MAIN-00000.warc.gz", "Offset": "1000"}
    body = json.dumps({"Container": container, "Envelope": envelope}, separators=(",", ":")).encode()
    return record("metadata", url, body, "application/json")


def write_archive(path, records):
    """Compressed per record, as the name says: .gz, .zst, or not at all."""
    pack = {".gz": lambda one: gzip.compress(one, mtime=0), ".zst": zstd}.get(path.suffix, bytes)
    path.write_bytes(b"".join(pack(one) for one in records))
    return path


def brotli(data):
    packed = io.BytesIO()
    with BrotliWriter(packed) as writer:
        writer.write(data)
    return packed.getvalue()


def zstd(data):
    """One Zstandard frame."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame"
        writer = ZstdWriter(str(path))
        writer.write(data)
        writer.close()
        return path.read_bytes()


def picture(width, height, colour="red", kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and holds no pixels: 200 megapixels in 57 bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    data = b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + data + struct.pack(">I", zlib.crc32(data))
