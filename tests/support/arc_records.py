"""ARC files written by hand, as the Internet Archive's description of the format has them."""

import gzip
from collections.abc import Iterable
from pathlib import Path

_DATE = "20080521031200"
_FIELDS = {
    1: "URL IP-address Archive-date Content-type Archive-length",
    2: "URL IP-address Archive-date Content-type Result-code Checksum Location Offset Filename Archive-length",
}


def arc_record(
    url: str | bytes, content: bytes, content_type: str = "text/html", version: int = 1, status: int = 200
) -> bytes:
    """One record, uncompressed. `content`: HTTP head and body."""
    address = url.encode() if isinstance(url, str) else url
    fields = f" 192.0.2.7 {_DATE} {content_type}"
    if version == 2:
        fields += f" {status} 1B2M2Y8AsgTpgAmY7PhCfg== - 1234 a.arc.gz"
    return address + f"{fields} {len(content)}\n".encode() + content + b"\n"


def arc_response(
    url: str | bytes,
    body: bytes,
    content_type: str = "text/html",
    status: str = "200 OK",
    headers: str = "",
    version: int = 1,
) -> bytes:
    """The record of an HTTP response, uncompressed."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{headers}\r\n".encode()
    return arc_record(url, head + body, content_type.partition(";")[0], version, int(status[:3]))


def arc_start(version: int = 1, more: str = "") -> bytes:
    """The first record, which describes the file. `more`: such as the XML that Heritrix writes (version 1.1)."""
    minor = 1 if more else 0
    content = f"{version} {minor} InternetArchive\n{_FIELDS[version]}\n{more}".encode()
    return f"filedesc://a.arc 0.0.0.0 {_DATE} text/plain {len(content)}\n".encode() + content + b"\n"


def write_arc(path: Path, records: Iterable[bytes], version: int = 1, more: str = "") -> Path:
    """The records after a first one; compressed one by one where the name ends in .gz."""
    is_packed = path.suffix.lower() == ".gz"
    all_records = [arc_start(version, more), *records]
    path.write_bytes(b"".join(gzip.compress(one, mtime=0) if is_packed else one for one in all_records))
    return path
