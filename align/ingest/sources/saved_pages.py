"""A folder of saved pages with their images: `page.html` and `page_files/...`, or a mirror as wget makes it.

A relative address is a file next to the page (percent-encoding undone); one that begins with `/` is relative to the
folder itself. The web can be asked for addresses on a server, and for missing files of a page that states where it was
saved from (a comment of browsers, or a <base>). Files outside the folder are never read, even if a page or a symbolic
link points to one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.limits import TooLarge, read_at_most
from align.ingest.sources.candidates import Candidate
from align.ingest.sources.pages import check_characters, no_address, resolver_of, written_images
from align.ingest.sources.picture_files import folder_of, read_picture
from align.ingest.sources.reading import Batches, is_file, is_within, joined, parent, skip
from align.ingest.sources.rights import Marks
from align.interfaces.store import Files

_SUFFIXES = (".html", ".htm", ".xhtml")
#: Pages per unit of scanning.
_PAGES_PER_UNIT = 500
_SAVED_FROM = re.compile(rb"<!--\s*saved from url=\(\d+\)(\S+)", re.IGNORECASE)
_HEAD_BYTES = 4096


class SavedPages:
    """A source, see `align.ingest.sources.Source`. A unit of scanning is named after its first page."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when the location has no page, or is on a web server: this is not a crawler."""
        pages = files.list(location, _SUFFIXES, config.paths_root)
        on_web = next((page for page in pages if page.lower().startswith(("https://", "http://"))), None)
        if on_web is not None:
            raise DataError(f"{on_web}: pages are read from a folder or s3://; save it with its pictures first")
        starts = range(0, len(pages), _PAGES_PER_UNIT)
        self._units = {pages[start]: pages[start : start + _PAGES_PER_UNIT] for start in starts}
        self.files = list(self._units)
        self.inputs = pages
        self._config, self._every = config, config.texts_per_picture == "all"
        self._store = files
        self._folder = folder_of(location, pages)

    def scan(self, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
        """See `Source`."""
        batches = Batches()
        for page in self._units[file]:
            self._add_page(page, batches, counts)
            yield from batches.full()
        yield from batches.rest()

    def _add_page(self, page: str, batches: Batches, counts: Counter[str]) -> None:
        counts["pages"] += 1
        if not is_within(self._folder, page):
            counts["pages_unreadable"] += 1
            return
        name = page.removeprefix(self._folder + "/")
        try:
            with self._store.open(page) as stream:
                body = read_at_most(stream, self._config.max_record_bytes)
            saved_from = _SAVED_FROM.search(body[:_HEAD_BYTES])
            page_url = saved_from[1].decode("utf-8", "replace") if saved_from else None
            if not page_url or not page_url.startswith(("http://", "https://")):
                page_url = None
            base, images, marks = written_images(body, None, self._config.text_from, every=self._every)
            check_characters(images, page_url or name, base)
        except TooLarge as error:
            skip(counts, "pages_too_large", page, error)
            return
        resolver = resolver_of(page_url or "", base)
        rights = (marks or Marks()).rights(resolver)
        counts["rows"] += len(images)
        for number, (source, text, text_source) in enumerate(images):
            path = self._path(page, source)
            if path is not None:
                url = path.removeprefix(self._folder + "/")
                batches.add(Candidate(url, text, text_source, page_url or name, file=path, **rights._asdict()))
                continue
            address = resolver.resolve(source) if source else no_address(name, number)
            problem = address.problem
            if problem == "invalid URL" and "//" not in source:
                problem = "no such file"  # relative, and the page names no server
            of_page = {"inline": address.inline, **rights._asdict()}
            batches.add(Candidate(address.url, text, text_source, page_url or name, problem, **of_page))

    def _path(self, page: str, source: str) -> str | None:
        """The file of an address, if it exists and is inside the folder."""
        try:
            parts = urlsplit(source)
        except ValueError:
            return None
        if parts.scheme or parts.netloc or not parts.path:
            return None
        folder = "" if parts.path.startswith("/") else parent(page).removeprefix(self._folder)
        path = joined(self._folder, folder, unquote(parts.path))
        return path if path is not None and is_file(self._store, path) and is_within(self._folder, path) else None

    def read(self, file: str, offset: int | None) -> bytes | None:
        """See `Source`: the whole file."""
        return read_picture(self._store, file, self._config.max_record_bytes, self._folder)
