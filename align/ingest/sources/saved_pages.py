"""A folder of saved pages with their images: `page.html` and `page_files/...`, or a mirror as wget makes it.

A relative address is a file beside the page (its percent-encoding undone), one that begins with `/` a file of the
folder itself. An address on a server, or one whose file is missing while the page says where it was saved from (a
comment of browsers, or a <base>), can be asked for on the web. Nothing outside the folder is read, whatever a page
or a symbolic link says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from align.config.ingest import IngestConfig
from align.ingest.sources.pages import no_address, resolver_of, written_images
from align.ingest.sources.reading import Batches, is_file, is_local, is_within, joined, parent
from align.protocols.store import Files

_SUFFIXES = (".html", ".htm", ".xhtml")
#: Pages of one unit of scanning.
_PAGES_PER_UNIT = 500
_SAVED_FROM = re.compile(rb"<!--\s*saved from url=\(\d+\)(\S+)", re.IGNORECASE)
_HEAD_BYTES = 4096


class SavedPages:
    """A source, see `align.ingest.sources.Source`. A unit of scanning is named after its first page."""

    def __init__(self, config: IngestConfig, location: str, files: Files) -> None:
        """Raises DataError when no page is at the location."""
        pages = files.list(location, _SUFFIXES)
        self._units = {pages[at]: pages[at : at + _PAGES_PER_UNIT] for at in range(0, len(pages), _PAGES_PER_UNIT)}
        self.files = list(self._units)
        self.inputs = pages
        self._config = config
        self._store = files
        folder = str(Path(location)) if is_local(location) else location.rstrip("/")
        self._folder = folder if all(page.startswith(folder + "/") for page in pages) else _common_folder(pages)

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
        with self._store.open(page) as stream:
            body = stream.read()
        saved_from = _SAVED_FROM.search(body[:_HEAD_BYTES])
        page_url = saved_from[1].decode("utf-8", "replace") if saved_from else None
        if not page_url or not page_url.startswith(("http://", "https://")):
            page_url = None
        name = page.removeprefix(self._folder + "/")
        base, images = written_images(body, None, self._config.text_from)
        resolver = resolver_of(page_url or "", base)
        counts["rows"] += len(images)
        for number, (source, text, text_source) in enumerate(images):
            path = self._path(page, source)
            if path is not None:
                url = path.removeprefix(self._folder + "/")
                batches.candidate(url, text, text_source, page_url=page_url or name, file=path)
                continue
            address = resolver.resolve(source) if source else no_address(name, number)
            problem = address.problem
            if problem == "invalid URL" and "//" not in source:
                problem = "no such file"  # relative, and nothing says relative to what server
            batches.candidate(
                address.url, text, text_source, page_url=page_url or name, problem=problem, inline=address.inline
            )

    def _path(self, page: str, source: str) -> str | None:
        """The file that an address means, if it is there and inside the folder."""
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
        if not is_within(self._folder, file) or not is_file(self._store, file):
            return None
        with self._store.open(file) as stream:
            return stream.read()


def _common_folder(pages: list[str]) -> str:
    """The lowest folder that holds all pages."""
    folder = parent(pages[0])
    while folder != "." and not all(page.startswith(folder + "/") for page in pages):
        folder = parent(folder)
    return folder
