"""Writes the web archive (WARC 1.1): one gzip member per record, the same bytes on every run.

Owns the records, and damage as in real crawls: images that were never fetched, cut-off bodies, and error pages served
at an image's address.
"""

from __future__ import annotations

import base64
import hashlib
import uuid
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from items import rank
from pages import Page

_DATE = "2021-02-11T00:00:00Z"
"""The day the ALIGN paper appeared; fixed, so that the archive does not depend on the day it is built."""
_MISSING, _CUT, _NOT_FOUND, _NO_IMAGE = 48, 16, 12, 12
_ERROR_BODY = b"<!DOCTYPE html><html><head><title>Error</title></head><body>The image is not available.</body></html>\n"


def write(
    path: Path, pages: Sequence[Page], images: Mapping[str, tuple[str, bytes]], spare: set[str]
) -> dict[str, int]:
    """Writes pages and images, sorted by URL.

    Args:
        path: the archive.
        pages: HTML pages.
        images: URL -> (media type, bytes).
        spare: URLs that must not be damaged (the planted copies).

    Returns:
        How many records of each kind were written, and how many images were damaged in each way.
    """
    damage = _damage([url for url in images if url not in spare])
    members = [_member("warcinfo", "", "application/warc-fields", b"software: align-mlops sample build\r\n")]
    for page in pages:
        content_type = "text/html" + (f"; charset={page.charset}" if page.declared == "header" else "")
        members.append(_response(page.url, content_type, page.body()))
    for url in sorted(images):
        content_type, body = images[url]
        kind = damage.get(url, "whole")
        if kind == "cut":
            members.append(_response(url, content_type, body, keep=len(body) * 2 // 5))
        elif kind == "not_found":
            members.append(_response(url, "text/html", _ERROR_BODY, status="404 Not Found"))
        elif kind == "no_image":
            members.append(_response(url, content_type, _ERROR_BODY))
        elif kind == "whole":
            members.append(_response(url, content_type, body))
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"".join(members))
    partial.replace(path)
    counts = {kind: sum(k == kind for k in damage.values()) for kind in ("missing", "cut", "not_found", "no_image")}
    return {"records": len(members), "pages": len(pages), "images": len(images), **counts}


def _damage(urls: Sequence[str]) -> dict[str, str]:
    order = sorted(urls, key=lambda url: rank("damage", url))
    kinds = ["missing"] * _MISSING + ["cut"] * _CUT + ["not_found"] * _NOT_FOUND + ["no_image"] * _NO_IMAGE
    return dict(zip(order, kinds, strict=False))


def _response(url: str, content_type: str, body: bytes, status: str = "200 OK", keep: int | None = None) -> bytes:
    """A response record; with ``keep``, the connection broke after that many bytes of the body."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    body = body[:keep]
    digest = "sha1:" + base64.b32encode(hashlib.sha1(body).digest()).decode()
    extra = [("WARC-Payload-Digest", digest), *([("WARC-Truncated", "disconnect")] if keep else [])]
    return _member("response", url, "application/http; msgtype=response", head + body, extra)


def _member(kind: str, url: str, content_type: str, block: bytes, extra: Sequence[tuple[str, str]] = ()) -> bytes:
    identity = uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {url} {hashlib.sha256(block).hexdigest()}")
    fields = [
        ("WARC-Type", kind),
        *([("WARC-Target-URI", url)] if url else []),
        ("WARC-Date", _DATE),
        ("WARC-Record-ID", f"<urn:uuid:{identity}>"),
        *extra,
        ("Content-Type", content_type),
        ("Content-Length", str(len(block))),
    ]
    head = "WARC/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields) + "\r\n"
    # zlib writes a gzip header without time and file name, so its bytes never vary.
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(head.encode() + block + b"\r\n\r\n") + packer.flush()
