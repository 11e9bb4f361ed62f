"""Bytes that should be a picture -> its outcome, and the bytes to store.

A later ingest reuses outcomes of this code alone: its digest is in the manifest of data/raw.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from align.formats.statuses import FAILED_TO_DOWNLOAD, FAILED_TO_RESIZE, SUCCESS
from align.pairs.picture import PictureError, read_header, shrink


@dataclass(frozen=True)
class PictureOutcome:
    """What became of an address: the columns of data/raw that all its pairs share."""

    status: str
    error_message: str | None = None
    retryable: bool = False
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None
    image_key: str | None = None


def examine(
    data: bytes | str, max_pixels: int, resize_px: int | None, jpeg_quality: int
) -> tuple[PictureOutcome, bytes | None]:
    """The outcome, and the bytes to store; `data` may be the reason why there are no bytes. Values as in `Pictures`."""
    if isinstance(data, str):
        return PictureOutcome(FAILED_TO_DOWNLOAD, data), None
    try:
        header = read_header(data)
    except PictureError as error:
        return PictureOutcome(FAILED_TO_RESIZE, str(error)), None
    width, height = header.width_px, header.height_px
    original = PictureOutcome(FAILED_TO_RESIZE, original_width=width, original_height=height)
    if width * height > max_pixels:
        return replace(original, error_message=f"too many pixels: {width} x {height}"), None
    if resize_px is not None and min(width, height) > resize_px:
        try:
            data, width, height = shrink(data, resize_px, jpeg_quality, max_pixels)
        except PictureError as error:
            return replace(original, error_message=str(error)), None
    digest = hashlib.sha256(data).hexdigest()
    return replace(original, status=SUCCESS, width=width, height=height, sha256=digest), data
