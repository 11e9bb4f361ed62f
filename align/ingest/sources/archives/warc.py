"""Web archives: WARC and WAT files, compressed per record (gzip, Zstandard) or not at all.

A file is streamed once. A WARC gives the pairs of its pages and the offset of each response, by which pictures
are read later. A WAT describes pages and has no bytes, so it gives pairs only. Memory holds two records and one batch
of rows; only the headers are used of a record larger than `ingest.max_record_bytes`.

Decisions: a `resource` record counts as a response of status 200; a `revisit` that names another address with the same
bytes counts as a redirect to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from fastwarc.stream_io import ZstdReader

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.limits import TooLarge, read_at_most, too_large
from align.ingest.sources import outcomes, rights
from align.ingest.sources.archives import codings, damage, warc_records
from align.ingest.sources.archives.warc_records import Record
from align.ingest.sources.archives.wat import add_wat_record
from align.ingest.sources.pages import page_images
from align.ingest.sources.reading import Batches, OpenFiles, skip
from align.interfaces.store import Files
from align.pairs.urls import Resolver, canonical_or_as_is

_SUFFIXES = tuple(f".{kind}{packed}" for kind in ("warc", "wat") for packed in ("", ".gz", ".zst"))
#: What crawlers wrote before 2009. Listed, so that a folder of them is refused with the remedy.
_ARC_SUFFIXES = (".arc", ".arc.gz")
_OK, _FOUND = 200, 302


class Warc:
    """A source, see `align.ingest.sources.Source`."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no archive, or one in the format before WARC."""
        self.files = self.inputs = files.list(location, _SUFFIXES + _ARC_SUFFIXES, config.paths_root)
        if old := next((file for file in self.files if file.lower().endswith(_ARC_SUFFIXES)), None):
            raise DataError(
                f"{old}: ARC, the format before WARC, is not read; convert it: "
                "`pip install warcio`, then `warcio recompress OLD.arc.gz NEW.warc.gz`"
            )
        self._config, self._every = config, config.texts_per_picture == "all"
        self._max_bytes = config.max_record_bytes
        self._open = OpenFiles(files)
        self._store = files
        self._dictionaries: dict[str, bytes | None] = {}  # dictionaries of files compressed with Zstandard

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`. Every page of status 200 is read; every response gives a row, and every record an outcome.

        Raises:
            DataError: the file is not a web archive, or is compressed as a whole although pictures must be read from
                it. The message names it.
        """
        batches = Batches()
        for record in self._records(file, counts):
            if record.kind == warc_records.METADATA:
                outcome = self._add_metadata(file, record, batches, counts)
            elif record.kind == warc_records.OTHER:
                outcome = None
            else:
                outcome = self._add_response(file, record, batches, counts)
            counts[outcomes.OTHER_RECORDS if outcome is None else outcomes.count_of(outcome)] += 1
            yield from batches.full()
        yield from batches.rest()

    def _records(self, file: str, counts: Counter[str]) -> Iterator[Record]:
        """Every whole record of a file."""
        with self._store.open(file) as stream:
            try:
                yield from damage.whole_records(file, stream, partial(self._begins, file), self._max_bytes, counts)
            except TooLarge as error:  # the dictionary
                raise DataError(f"{file}: not a web archive ({error})") from None

    def _add_metadata(self, file: str, record: Record, batches: Batches, counts: Counter[str]) -> str | None:
        """The outcome; None for what describes no response."""
        try:
            if len(record.body) > self._max_bytes:
                raise too_large(self._max_bytes)
            return add_wat_record(record.body, self._config.text_from, batches, counts, every=self._every)
        except TooLarge as error:
            counts["pages"] += 1
            skip(counts, "pages_too_large", f"{file}: {record.url or 'a page'}", error)
            return outcomes.PAGE_TOO_LARGE

    def _add_response(self, file: str, record: Record, batches: Batches, counts: Counter[str]) -> str:
        """Adds the row of a response, and the pairs of a page. Returns the outcome."""
        if not record.url:
            return outcomes.NO_ADDRESS
        if record.problem == outcomes.HTTP_HEAD_TOO_LARGE:
            return record.problem
        if record.offset is None and self._config.images_from != "web":
            raise DataError(
                f"{file}: compressed as a whole, so no picture can be read from it; "
                "run `fastwarc recompress` on it first, or set ingest.images_from=web"
            )
        url, status, location, outcome = canonical_or_as_is(record.url), record.status, None, record.problem
        if record.kind == warc_records.REVISIT:
            outcome = outcomes.REVISIT
            if record.same_as in ("", record.url):
                return outcome  # it adds nothing: the response of this address is in the archive
            status, location = _FOUND, canonical_or_as_is(record.same_as)
        elif 300 <= status < 400:
            outcome = outcomes.REDIRECT
            location = _location(record.url, record.headers.get("Location") if record.headers else None)
        batches.add_response(url, status, location, file, record.offset, _reservation(record))
        if outcome is not None:
            return outcome
        if record.is_page:
            return self._add_page(file, record, batches, counts)
        if status not in (0, _OK):
            return outcomes.ERROR_STATUS
        return outcomes.IMAGE if record.content_type.startswith("image/") else outcomes.OTHER_TYPE

    def _add_page(self, file: str, page: Record, batches: Batches, counts: Counter[str]) -> str:
        counts["pages"] += 1
        try:
            if len(page.body) > self._max_bytes:
                raise too_large(self._max_bytes)
            body = codings.decoded(page.body, page.headers, self._max_bytes)
            if body.data is None:
                skip(counts, "pages_unreadable", f"{file}: {page.url}", body.problem)
                return outcomes.PAGE_UNREADABLE
            images, said = page_images(body.data, page.url, page.charset, self._config.text_from, every=self._every)
        except TooLarge as error:
            skip(counts, "pages_too_large", f"{file}: {page.url}", error)
            return outcomes.PAGE_TOO_LARGE
        for is_so, count in ((body.is_absent, "pages_coding_absent"), (body.is_unknown, "pages_coding_unknown")):
            if is_so:
                counts[count] += 1
        counts["rows"] += len(images)
        reservation = said.reservation or _reservation(page)
        batches.add_page(page.url, images, said._replace(reservation=reservation))
        return outcomes.PAGE if images else outcomes.PAGE_WITHOUT_IMAGES

    def _begins(self, file: str, offset: int) -> bool:
        """Whether a record begins at this byte; offsets have no meaning in a file that is compressed as a whole."""
        return warc_records.begins_a_record(self._open.at(file, offset))

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the body of one response; None if it cannot be read or its codings cannot be undone.

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
                _, self._dictionaries[file] = warc_records.zstd_dictionary(self._open.at(file, 0))
                stream.seek(offset)
            stream = ZstdReader(stream, dictionary=self._dictionaries[file])
        try:
            raw = next(iter(warc_records.iterator(stream, quirks=True)), None)
            if raw is None:
                return None
            record, begin = warc_records.described(raw, offset)
            if record.problem is not None:
                return None
            body = read_at_most(raw.reader, self._max_bytes, begin)
            return codings.decoded(body, record.headers, self._max_bytes).data
        except OSError:
            return None


def _reservation(record: Record) -> str | None:
    head = record.headers
    if head is None:
        return None
    return rights.of_headers(head.all, is_page=record.is_page)


def _location(url: str, location: str | None) -> str | None:
    address = Resolver(url).resolve(location.strip()) if location and location.strip() else None
    return address.url if address and not address.problem else None
