"""Web archives: WARC and WAT files, compressed per record (gzip, Zstandard) or not at all.

A file is streamed once. A WARC gives the pairs of its pages and the offset of each response, by which pictures are read
later. A WAT describes pages and has no bytes, so it gives pairs only. Memory holds one record and one batch of rows;
of a record larger than `ingest.max_record_bytes` only the headers are used.

Decisions: a `resource` record counts as a response of status 200; a `revisit` that names another address with the same
bytes counts as a redirect to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.limits import TooLarge, read_at_most, too_large
from align.ingest.sources import warc_bytes
from align.ingest.sources.pages import page_images
from align.ingest.sources.reading import Batches, OpenFiles, skip
from align.ingest.sources.wat import add_wat_record
from align.pairs.urls import Resolver, canonical_or_as_is
from align.protocols.store import Files

_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("warc", "wat") for packed in ("", ".gz", ".zst"))
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_OK, _FOUND = 200, 302
#: Of a record's WARC headers, and of its HTTP headers. Crawlers stop at less.
_MAX_HEADER_BYTES = 1 << 20


class _Response(NamedTuple):
    """The headers of a record.

    Attributes:
        url: as recorded.
        status: 0 where the record has none.
        is_page: HTML with status 200.
        charset: of the content type.
        location: canonical target of a redirect.
    """

    url: str
    status: int
    is_page: bool
    charset: str | None
    location: str | None


class Warc:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no archive."""
        self.files = self.inputs = files.list(location, _SUFFIXES, config.paths_root)
        self._config = config
        self._max_bytes = config.max_record_bytes
        self._open = OpenFiles(files)
        self._store = files
        self._dictionaries: dict[str, bytes | None] = {}  # of files compressed with Zstandard, by file

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`. Every page of status 200 is read; every response gives a row.

        Raises:
            DataError: the file is not a WARC; is cut off or damaged (unless `allow_damaged`); or is compressed as a
                whole although pictures must be read from it. The message names the file and the byte.
        """
        batches = Batches()
        for record, response, offset, body in self._records(file, counts):
            if response is not None:
                if offset is None and self._config.images_from != "web":
                    raise DataError(
                        f"{file}: compressed as a whole, so no picture can be read from it; run `fastwarc recompress` "
                        "on it first, or set ingest.images_from=web"
                    )
                url = canonical_or_as_is(response.url)
                batches.add_response(url, response.status, response.location, file, offset)
            try:
                if len(body) > self._max_bytes:
                    raise too_large(self._max_bytes)
                if response is not None and response.is_page:
                    self._add_page(response, body, record.http_headers, batches, counts)
                elif response is None and body:
                    add_wat_record(body, self._config.text_from, batches, counts)
            except TooLarge as error:
                counts["pages"] += 1
                skip(counts, "pages_too_large", f"{file}: {record.headers.get('WARC-Target-URI') or 'a page'}", error)
            yield from batches.full()
        yield from batches.rest()

    def _add_page(
        self, page: _Response, body: bytes, http_headers: Any, batches: Batches, counts: Counter[str]
    ) -> None:
        decoded = warc_bytes.decoded(body, http_headers, self._max_bytes)
        images = None if decoded is None else page_images(decoded, page.url, page.charset, self._config.text_from)
        counts["pages"] += 1
        if images is None:
            counts["pages_unreadable"] += 1
            return
        counts["rows"] += len(images)
        batches.add_page(page.url, images)

    def _records(self, file: str, counts: Counter[str]) -> Iterator[tuple[Any, _Response | None, int | None, bytes]]:
        """Every complete record, with its response, its offset (None where unusable), and its body if it is needed.

        Of a body larger than `max_record_bytes` one byte more than that is read.
        """
        last, ends_at, problem, by_offset = -1, None, "", True
        num_records, is_last_known = 0, True
        with self._store.open(file) as stream:
            try:
                for record in self._iterate(file, stream, counts):
                    is_last_known = record is not None
                    if record is None:
                        continue
                    position, num_records = record.stream_pos, num_records + 1
                    if position <= last or (num_records == 2 and not self._begins(file, position)):
                        by_offset = False
                    last = max(last, position)
                    expected = record.content_length  # of the body: the HTTP headers were read before
                    response = _response(record)
                    is_read = response.is_page if response else record.record_type == WarcRecordType.metadata
                    body = record.reader.read(self._max_bytes + 1) if is_read else b""
                    if len(body) + record.consume() < expected:
                        ends_at, problem = last, "the record that starts there is cut off"
                        break
                    yield record, response, position if by_offset else None, body
            except OSError as error:
                ends_at, problem = max(last, 0), " ".join(str(error).split())
            if last < 0:
                raise DataError(f"{file}: not a web archive ({problem or 'no WARC record in it'})")
            if ends_at is None and is_last_known and not warc_bytes.ends_well(stream, last if by_offset else None):
                ends_at, problem = last, "the bytes after the record that starts there are not a complete record"
            size = stream.seek(0, 2)
        if ends_at is not None:
            if not self._config.allow_damaged:
                raise DataError(
                    f"{file}: cut off or damaged at byte {ends_at:,} of {size:,} ({problem}); fetch it again, "
                    "or set ingest.allow_damaged to take the part before"
                )
            counts["truncated_files"] += 1

    def _iterate(self, file: str, stream: BinaryIO, counts: Counter[str]) -> Iterator[Any]:
        """fastwarc's records; None for one whose HTTP headers are too long."""
        if file.endswith(".zst"):
            try:
                warc_bytes.zstd_dictionary(stream)  # fastwarc reads it whole
            except TooLarge as error:
                raise DataError(f"{file}: not a web archive ({error})") from None
            stream.seek(0)
        records = iter(
            ArchiveIterator(
                stream, record_types=WarcRecordType.any_type, strict_mode=False, max_header_len=_MAX_HEADER_BYTES
            )
        )
        refused: OSError | None = None
        while True:
            before, refused = refused, None
            record = None
            try:
                record = next(records, None)
            except OSError as error:
                if "header length" not in str(error):
                    raise before or error from None  # fastwarc cannot continue after a WARC header that is too long
                refused = error
            if before is not None:
                skip(
                    counts, "records_unreadable", file, f"a record with HTTP headers above {_MAX_HEADER_BYTES:,} bytes"
                )
                yield None
            if refused is None:
                if record is None:
                    return
                yield record

    def _begins(self, file: str, offset: int) -> bool:
        """Whether a record begins at this byte; in a file that is compressed as a whole offsets have no meaning."""
        return warc_bytes.begins_a_record(self._open.at(file, offset))

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the body of one response; None where its encodings cannot be undone.

        Raises:
            DataError: no record begins at the offset.
            TooLarge: the record is larger than `max_record_bytes`.
        """
        if offset is None:
            return None
        if not self._begins(file, offset):
            raise DataError(f"{file}: no record at byte {offset:,}; did the file change? Run `align ingest` again")
        stream: Any = self._open.at(file, offset)
        if file.endswith(".zst"):
            if file not in self._dictionaries:
                self._dictionaries[file] = warc_bytes.zstd_dictionary(self._open.at(file, 0))
                stream.seek(offset)
            stream = warc_bytes.zstd_reader(stream, self._dictionaries[file])
        try:
            records = ArchiveIterator(stream, strict_mode=False, max_header_len=_MAX_HEADER_BYTES)
            record = next(iter(records), None)
            if record is None:
                return None
            body = read_at_most(record.reader, self._max_bytes)
            return warc_bytes.decoded(body, record.http_headers, self._max_bytes)
        except OSError:
            return None


def _response(record: Any) -> _Response | None:  # Any: fastwarc's classes are compiled
    """The response that a record describes; None for records of another kind."""
    kind, headers = record.record_type, record.headers
    url = (headers.get("WARC-Target-URI") or "").strip("<> ")
    if not url or kind not in (WarcRecordType.response, WarcRecordType.resource, WarcRecordType.revisit):
        return None
    if kind == WarcRecordType.revisit:
        same_as = (headers.get("WARC-Refers-To-Target-URI") or "").strip("<> ")
        # a revisit of the same address adds nothing: its response is in the archive
        return _Response(url, _FOUND, False, None, canonical_or_as_is(same_as)) if same_as not in ("", url) else None
    if kind == WarcRecordType.resource:
        content_type, _, parameters = (headers.get("Content-Type") or "").lower().partition(";")
        charset = parameters.partition("charset=")[2].strip(" \"'") or None
        return _Response(url, _OK, content_type.strip() in _HTML_TYPES, charset, None)
    http = record.http_headers
    status = (http.status_code if http is not None else None) or 0
    if 300 <= status < 400:
        return _Response(url, status, False, None, _location(url, http.get("Location")))
    content_type = record.http_content_type or headers.get("WARC-Identified-Payload-Type") or ""
    is_page = status == _OK and content_type.lower() in _HTML_TYPES
    return _Response(url, status, is_page, record.http_charset if is_page else None, None)


def _location(url: str, location: str | None) -> str | None:
    address = Resolver(url).resolve(location.strip()) if location and location.strip() else None
    return address.url if address and not address.problem else None
