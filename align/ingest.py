"""ingest: a web archive -> data/raw, one row per <img> of a page, in img2dataset's layout.

The archive is streamed twice: once to learn where each response lies, once to read the pages; a picture's bytes are
fetched by their offset when its first pair is written. Memory grows with the number of distinct URLs (some 200 bytes
each), not with bytes. What has no picture is a row with a status; nothing is left out.

Deviation from the paper: it starts from 1.8 billion pairs collected by others; how pages become pairs is our choice
(see `align.pairs.pages`).
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.config.ingest import IngestConfig
from align.config.params import Params
from align.config.paths import PathsConfig
from align.errors import DataError
from align.pairs.archive import Archive, Response
from align.pairs.layout import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS, RawWriter
from align.pairs.pages import PageImage, canonical_url, page_images
from align.pairs.picture import PictureError, read_header
from align.stage import Report, record_runtime, replace_directory, say, track, write_report

_HTTP_OK = 200


class IngestReport(Report):
    """What came out of the archive.

    Attributes:
        num_pages: pages read.
        num_pages_in_archive: pages there are.
        num_pages_unreadable: pages whose content encoding could not be undone; they give no pairs.
        num_pairs: rows written.
        num_images: distinct images stored.
        num_truncated_files: archive files of which only the readable part was taken.
        statuses: pairs per status.
        errors: pairs per error message, numbers in it left out.
    """

    num_pages: int
    num_pages_in_archive: int
    num_pages_unreadable: int
    num_pairs: int
    num_images: int
    num_truncated_files: int
    statuses: dict[str, int]
    errors: dict[str, int]


@dataclass(frozen=True)
class _Fetched:
    """What is known about an image URL after its first pair: the columns that all its pairs share."""

    status: str
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    sha256: str | None = None
    image_key: str | None = None


def ingest(config: IngestConfig, archive_path: Path, raw: Path) -> IngestReport:
    """Writes data/raw anew.

    Args:
        config: the section.
        archive_path: a WARC file, or a folder of them.
        raw: the folder to write; replaced as a whole.

    Raises:
        DataError: the archive is missing, no WARC, damaged, or has no page with an <img>.
    """
    with Archive(archive_path) as archive:
        say(f"ingest: scanning {archive_path}")
        responses, pages, num_pages_in_archive = _index(archive, config)
        counts: Counter[str] = Counter()
        statuses: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        with replace_directory(raw) as directory, RawWriter(directory, config.shard_size) as writer:
            fetcher = _Fetcher(archive, responses, config.max_image_pixels)
            for page in track(pages, what="ingest: pages", total=len(pages)):
                for image in _images(archive, page, counts):
                    key = writer.next_key()
                    fetched, data = fetcher.fetch(image, key)
                    writer.add(_row(key, page.url, image, fetched), data)
                    statuses[fetched.status] += 1
                    if fetched.error_message:
                        errors[fetched.error_message.partition(":")[0]] += 1
            if not statuses:
                raise DataError(f"{archive_path}: no <img> with a src on any of its {num_pages_in_archive:,} pages")
        num_truncated_files = len(archive.truncated)
    num_pairs = sum(statuses.values())
    metrics: dict[str, float | int] = {
        "ingest/num_pages": len(pages),
        "ingest/num_pairs": num_pairs,
        "ingest/num_images": fetcher.num_images,
    }
    for status in (SUCCESS, FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE):
        metrics[f"ingest/status/{status}"] = statuses[status]
    return IngestReport(
        metrics=metrics,
        num_pages=len(pages),
        num_pages_in_archive=num_pages_in_archive,
        num_pages_unreadable=counts["unreadable"],
        num_pairs=num_pairs,
        num_images=fetcher.num_images,
        num_truncated_files=num_truncated_files,
        statuses=dict(statuses),
        errors=dict(errors),
    )


def _index(archive: Archive, config: IngestConfig) -> tuple[dict[str, Response], list[Response], int]:
    """One pass: URL -> response (the first good one), the pages to read in archive order, and how many there are.

    With `max_pages`, the pages with the smallest hashes of their URL: spread over the archive, so that every source
    keeps its share, and the same ones every time.
    """
    responses: dict[str, Response] = {}
    pages: list[Response] = []
    smallest: list[tuple[int, int, int, Response]] = []  # a heap of negated hashes
    num_pages = 0
    for response in track(archive.scan(allow_truncated=config.allow_truncated), what="ingest: responses"):
        url = _canonical(response.url)
        known = responses.get(url)
        if known is None or (known.status != _HTTP_OK and response.status == _HTTP_OK):
            responses[url] = response
        if not response.is_html or response.status != _HTTP_OK:
            continue
        num_pages += 1
        if config.max_pages is None:
            pages.append(response)
            continue
        rank = -int.from_bytes(hashlib.sha256(response.url.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        item = (rank, -response.file, -response.offset, response)
        if len(smallest) < config.max_pages:
            heapq.heappush(smallest, item)
        else:
            heapq.heappushpop(smallest, item)
    pages += sorted((item[3] for item in smallest), key=lambda page: (page.file, page.offset))
    return responses, pages, num_pages


def _canonical(url: str) -> str:
    try:
        return canonical_url(url)
    except ValueError:
        return url


def _images(archive: Archive, page: Response, counts: Counter[str]) -> Iterator[PageImage]:
    body = archive.read(page)
    if body is None:
        counts["unreadable"] += 1
        return
    yield from page_images(body.data, page.url, body.charset)


class _Fetcher:
    """Image URL -> bytes and columns; each URL is fetched once, each picture handed out once.

    Attributes:
        num_images: distinct images handed out.
    """

    def __init__(self, archive: Archive, responses: dict[str, Response], max_image_pixels: int) -> None:
        self._archive = archive
        self._responses = responses
        self._max_image_pixels = max_image_pixels
        self._by_url: dict[str, _Fetched] = {}
        self._key_by_hash: dict[str, str] = {}

    @property
    def num_images(self) -> int:
        return len(self._key_by_hash)

    def fetch(self, image: PageImage, key: str) -> tuple[_Fetched, bytes | None]:
        """The columns of this image, and its bytes if they are to be stored under `key`."""
        if image.problem is not None:
            return _Fetched(FAILED_TO_DOWNLOAD, image.problem), None
        known = self._by_url.get(image.url)
        if known is not None:
            return known, None
        fetched, data = self._first(image.url, key)
        self._by_url[image.url] = fetched
        return fetched, data

    def _first(self, url: str, key: str) -> tuple[_Fetched, bytes | None]:
        response = self._responses.get(url)
        if response is None:
            return _Fetched(FAILED_TO_DOWNLOAD, "not in archive"), None
        if response.status != _HTTP_OK:
            return _Fetched(FAILED_TO_DOWNLOAD, f"HTTP {response.status}"), None
        body = self._archive.read(response)
        if body is None:
            return _Fetched(FAILED_TO_DOWNLOAD, "content encoding cannot be undone"), None
        try:
            header = read_header(body.data)
        except PictureError as error:
            return _Fetched(FAILED_TO_RESIZE, str(error)), None
        size = (header.width_px, header.height_px)
        if size[0] * size[1] > self._max_image_pixels:
            return _Fetched(FAILED_TO_RESIZE, f"too many pixels: {size[0]} x {size[1]}", *size), None
        digest = hashlib.sha256(body.data).hexdigest()
        stored = self._key_by_hash.get(digest)
        if stored is not None:
            return _Fetched(SUCCESS, None, *size, digest, stored), None
        self._key_by_hash[digest] = key
        return _Fetched(SUCCESS, None, *size, digest, key), body.data


def _row(key: str, page_url: str, image: PageImage, fetched: _Fetched) -> dict[str, Any]:
    good = fetched.status == SUCCESS
    return {
        "url": image.url,
        "caption": image.alt,
        "key": key,
        "status": fetched.status,
        "error_message": fetched.error_message,
        "width": fetched.width if good else None,
        "height": fetched.height if good else None,
        "original_width": fetched.width,
        "original_height": fetched.height,
        "sha256": fetched.sha256,
        "page_url": page_url,
        "image_key": fetched.image_key,
    }


def main(params: Params, args: argparse.Namespace) -> None:
    """`align ingest`."""
    config, paths = params.section(IngestConfig), params.section(PathsConfig)
    with record_runtime("ingest", paths.runtime) as runtime:
        report = ingest(config, paths.archive, paths.raw)
        write_report(report, paths.reports / "ingest")
        runtime["num_pairs"] = report.num_pairs
    failed = report.num_pairs - report.statuses.get(SUCCESS, 0)
    say(
        f"ingest: {report.num_pairs:,} pairs of {report.num_images:,} images from {report.num_pages:,} pages; "
        f"{failed:,} without a picture"
    )
    if report.num_truncated_files:
        say(f"ingest: warning: {report.num_truncated_files} archive file(s) cut off; only the readable part was taken")
