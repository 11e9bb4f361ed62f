"""A shard of the plan -> a shard of data/raw: each picture is fetched once, looked at once, stored once.

Bytes come out of the source's own files, out of the page itself (a data: URI), or from the web. What was fetched from
the web is spooled to disk in the order in which it arrived, and then written in the order of the plan: equal responses
give equal shards. Memory holds what is known of each address of the shard, and one picture.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from align.formats.policy import OptedOut
from align.formats.raw import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS
from align.ingest.writer import RawShardWriter
from align.pairs.picture import PictureError, read_header, shrink

_HTTP_OK = 200


class Answer(Protocol):
    """What comes back for an address, as `align.ingest.download.Fetched` has it."""

    @property
    def url(self) -> str:
        """As it was asked for."""

    @property
    def data(self) -> bytes | None:
        """The body; None after a failure."""

    @property
    def error(self) -> str | None:
        """Why there is none: a short code, and after a colon the details."""

    @property
    def retryable(self) -> bool:
        """Whether the failure may pass."""


#: Addresses -> answers, in the order of their arrival.
Fetch = Callable[[Iterable[str]], Iterator[Answer]]


@dataclass(frozen=True)
class Pictures:
    """What is done with pictures.

    Attributes:
        images_from: `archive`, `web` or `archive_then_web`, for pictures that pages name.
        max_pixels: larger ones are refused by their header.
        resize_px: shorter side to which larger ones are shrunk; None: bytes as they came.
        jpeg_quality: of shrunk ones.
        opted_out: what must not be fetched, or kept, any more.
    """

    images_from: str
    max_pixels: int
    resize_px: int | None
    jpeg_quality: int
    opted_out: OptedOut


@dataclass(frozen=True)
class Known:
    """What is known of an address after it was fetched: the columns that all its pairs share."""

    status: str
    error_message: str | None = None
    retryable: bool = False
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    image_key: str | None = None


_OPTED_OUT = Known(FAILED_TO_DOWNLOAD, "opted out")
Row = dict[str, Any]


def write_shard(
    directory: Path,
    name: str,
    place_digits: int,
    rows: Callable[[], Iterator[Row]],
    *,
    read: Callable[[str, int | None], bytes | None],
    fetch: Fetch,
    pictures: Pictures,
    keep_tar: Callable[[Path, str], None],
) -> None:
    """Writes one shard, or nothing.

    Args:
        directory: the work folder.
        name: of the shard.
        place_digits: of its keys.
        rows: gives the shard's pairs, columns as `Plan.rows`, and `known` where an earlier run's findings stand; called
            twice.
        read: the source's bytes by (file, offset).
        fetch: bytes from the web.
        pictures: what is done with them.
        keep_tar: where the finished tar goes, see `RawShardWriter`.
    """  # fmt: skip
    known: dict[str, Known] = {}
    keys: dict[str, str] = {}
    stored: set[str] = set()
    with ExitStack() as stack:
        spool = _Spool(stack.enter_context(tempfile.TemporaryFile(dir=directory)))
        for answer in fetch(_addresses(rows(), pictures)):
            if answer.data is None:
                known[answer.url] = Known(FAILED_TO_DOWNLOAD, answer.error, answer.retryable)
            else:
                spool.put(answer.url, answer.data)
        writer = stack.enter_context(RawShardWriter(directory, name, place_digits, keep_tar))
        for row in rows():
            key, url, data = writer.next_key, row["url"], None
            if pictures.opted_out.matches(url, row["page_url"], None):
                found = _OPTED_OUT
            elif (before := row.get("known")) is not None:  # a picture that an earlier run looked at
                found = before
                if before.image_key is not None and before.image_key not in stored:
                    key, data = before.image_key, read(before.image_key, None)
            elif row["problem"] is not None:
                found = Known(FAILED_TO_DOWNLOAD, row["problem"])
            elif url in known:
                found = known[url]
            else:
                found, data = _look(_bytes(row, spool, read, pictures), pictures)
                if pictures.opted_out.matches(None, None, found.sha256):
                    found, data = replace(_OPTED_OUT, sha256=found.sha256), None
                elif found.sha256 is not None:
                    first = keys.setdefault(found.sha256, key)
                    found, data = replace(found, image_key=first), data if first == key else None
                known[url] = found
            if data is not None:
                stored.add(key)
            writer.add(_raw_row(writer.next_key, row, found), data, key)


def _is_for_the_web(row: Row, pictures: Pictures) -> bool:
    """Whether the bytes must be asked for: nothing nearer has them."""
    if (
        row.get("known") is not None
        or row["problem"] is not None
        or row["inline"] is not None
        or pictures.opted_out.matches(row["url"], row["page_url"], None)
    ):
        return False
    if row["http_status"] is None and row["file"] is not None:
        return False  # a picture of the source's own
    return pictures.images_from == "web" or (pictures.images_from == "archive_then_web" and row["file"] is None)


def _addresses(rows: Iterable[Row], pictures: Pictures) -> Iterator[str]:
    seen: set[bytes] = set()
    for row in rows:
        if _is_for_the_web(row, pictures):
            digest = hashlib.blake2b(row["url"].encode("utf-8", "surrogatepass"), digest_size=12).digest()
            if digest not in seen:
                seen.add(digest)
                yield row["url"]


def _bytes(row: Row, spool: _Spool, read: Callable[[str, int | None], bytes | None], pictures: Pictures) -> bytes | str:
    """The picture's bytes, or why there are none."""
    if row["inline"] is not None:
        return bytes(row["inline"])
    if _is_for_the_web(row, pictures):
        return spool.get(row["url"]) or "empty body"
    if row["file"] is not None:
        return read(row["file"], row["offset"]) or "bytes cannot be read"
    status = row["http_status"]
    return "not in archive" if status is None else f"HTTP {status}"


def _look(data: bytes | str, pictures: Pictures) -> tuple[Known, bytes | None]:
    if isinstance(data, str):
        return Known(FAILED_TO_DOWNLOAD, data), None
    try:
        found = read_header(data)
    except PictureError as error:
        return Known(FAILED_TO_RESIZE, str(error)), None
    width, height = found.width_px, found.height_px
    source = Known(FAILED_TO_RESIZE, original_width=width, original_height=height)
    if width * height > pictures.max_pixels:
        return replace(source, error_message=f"too many pixels: {width} x {height}"), None
    if pictures.resize_px is not None and min(width, height) > pictures.resize_px:
        try:
            data, width, height = shrink(data, pictures.resize_px, pictures.jpeg_quality, pictures.max_pixels)
        except PictureError as error:
            return replace(source, error_message=str(error)), None
    digest = hashlib.sha256(data).hexdigest()
    return replace(source, status=SUCCESS, width=width, height=height, sha256=digest), data


def _raw_row(key: str, row: Row, found: Known) -> Row:
    return {
        "url": row["url"],
        "caption": row["caption"],
        "key": key,
        "status": found.status,
        "error_message": found.error_message,
        "width": found.width,
        "height": found.height,
        "original_width": found.original_width,
        "original_height": found.original_height,
        "sha256": found.sha256,
        "page_url": row["page_url"],
        "image_key": found.image_key,
        "text_source": row["text_source"],
        "retryable": found.retryable,
    }


class _Spool:
    """Bytes by address, on disk."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def put(self, url: str, data: bytes) -> None:
        self._file.seek(self._end)
        self._file.write(data)
        self._places[url] = (self._end, len(data))
        self._end += len(data)

    def get(self, url: str) -> bytes | None:
        offset, size = self._places.get(url, (0, 0))
        self._file.seek(offset)
        return self._file.read(size) or None
