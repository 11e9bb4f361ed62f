"""A web archive: WARC files, gzip per record, so that each response has an offset of its own.

`scan` streams over a file once and sees only headers; `Archive.read` fetches one response by its offset. Nothing here
holds more than one response in memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 16
_HTML_TYPES = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Response:
    """Where a response lies and what its header says.

    Attributes:
        file: index into the archive's files.
        offset: of the record in that file, in bytes.
        url: the target URI as recorded.
        status: HTTP status code; 0 where the record has none.
        is_html: by its content type.
    """

    file: int
    offset: int
    url: str
    status: int
    is_html: bool


@dataclass(frozen=True)
class Body:
    """The body of a response, its transfer and content encoding undone."""

    data: bytes
    charset: str | None


class Archive:
    """One WARC file, or a folder of them. A context manager: it keeps its files open for random access.

    Attributes:
        files: in order of their names.
        truncated: the files found to be cut off, with the offset where the readable part ends; filled by `scan`.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError when nothing is at `path`."""
        self.files = sorted([*path.glob("*.warc"), *path.glob("*.warc.gz")]) if path.is_dir() else [path]
        if not self.files or not self.files[0].exists():
            raise DataError(f"{path}: no web archive here; set paths.archive to a .warc.gz file or a folder of them")
        self.truncated: dict[Path, int] = {}
        self._open: dict[int, IO[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def scan(self, *, allow_truncated: bool) -> Iterator[Response]:
        """Streams over every response of every file, without its body.

        Args:
            allow_truncated: take the readable part of a file that is cut off, and note it in `truncated`.

        Raises:
            DataError: a file is no WARC, is compressed as a whole, or is cut off or damaged (unless allowed); the
                message names the file and the offset.
        """
        for number in range(len(self.files)):
            yield from self._scan_file(number, allow_truncated)

    def _scan_file(self, number: int, allow_truncated: bool) -> Iterator[Response]:
        path = self.files[number]
        last, ends_at, problem = -1, None, ""
        try:
            with path.open("rb") as stream:
                for record in ArchiveIterator(stream, record_types=WarcRecordType.any_type, strict_mode=False):
                    if record.stream_pos <= last:
                        raise DataError(f"{path}: compressed as a whole; run `fastwarc recompress` on it first")
                    last = record.stream_pos
                    expected = record.content_length
                    response = _response(number, record) if record.record_type == WarcRecordType.response else None
                    if record.consume() < expected:
                        ends_at, problem = last, "the record that starts there is cut off"
                        break
                    if response is not None:
                        yield response
        except OSError as error:
            ends_at, problem = max(last, 0), " ".join(str(error).split())
        if last < 0:
            raise DataError(f"{path}: not a web archive ({problem or 'no WARC record in it'})")
        if ends_at is None and not _ends_well(path, last):
            ends_at, problem = last, "bytes after the record that starts there belong to no whole record"
        if ends_at is not None:
            if not allow_truncated:
                size = path.stat().st_size
                raise DataError(
                    f"{path}: cut off or damaged at byte {ends_at:,} of {size:,} ({problem}); fetch it again, "
                    "or set ingest.allow_truncated to take the part before"
                )
            self.truncated[path] = ends_at

    def read(self, response: Response) -> Body | None:
        """The body of one response; None where its content encoding cannot be undone."""
        if response.file not in self._open:
            self._open[response.file] = self._stack.enter_context(self.files[response.file].open("rb"))
        stream = self._open[response.file]
        stream.seek(response.offset)
        try:
            for record in ArchiveIterator(stream, auto_decode="all", strict_mode=False):
                return Body(record.reader.read(), record.http_charset)
        except OSError:
            return None
        raise DataError(f"{self.files[response.file]}: no record at byte {response.offset:,}; did the file change?")


def _response(number: int, record: Any) -> Response | None:  # Any: fastwarc has no types
    url = record.headers.get("WARC-Target-URI")
    if url is None:
        return None
    headers = record.http_headers
    content_type = (record.http_content_type or "").lower()
    status = (headers.status_code if headers is not None else None) or 0
    return Response(number, record.stream_pos, url.strip("<> "), status, content_type in _HTML_TYPES)


def _ends_well(path: Path, offset: int) -> bool:
    """Whether the record at `offset` is the whole rest of the file: where a header is cut off, fastwarc just ends."""
    with path.open("rb") as stream:
        stream.seek(offset)
        if stream.read(2) == _GZIP_MAGIC:
            stream.seek(offset)
            member = zlib.decompressobj(wbits=31)
            while not member.eof and (chunk := stream.read(_CHUNK_BYTES)):
                member.decompress(chunk)
            return member.eof and not (member.unused_data + stream.read()).strip(b"\0")
        stream.seek(offset)
        head = stream.read(_CHUNK_BYTES)
        header, _, _ = head.partition(b"\r\n\r\n")
        length = next((line for line in header.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
        end = offset + len(header) + 4 + int(length.partition(b":")[2])
        stream.seek(end)
        return path.stat().st_size >= end and not stream.read().strip()
