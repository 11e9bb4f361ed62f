"""The images of the shards, in the order of the index, and their thumbnails."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from align.formats.image_index import IndexedImage
from align.formats.shards import SPLITS, iter_samples, read_manifest
from align.pairs.picture import small

#: A picture of 160 px takes about 3 kB.
_QUALITY = 65


def read_images(shards: Path) -> Iterator[tuple[IndexedImage, bytes]]:
    """Yields the description and the bytes of every image of every split.

    Raises:
        DataError: a shard is missing.
        CorruptError: a shard's bytes do not match the manifest.
    """
    for split in SPLITS:
        ranges = [
            (shard.path, jpg_offset, jpg_size)
            for shard in read_manifest(shards).splits[split].shards
            for jpg_offset, jpg_size, _, _ in shard.offsets
        ]
        for sample, (path, offset, size) in zip(iter_samples(shards, split), ranges, strict=True):
            item = IndexedImage(sample.key, sample.image_id, sample.texts, split, path, offset, size, sample.keys)
            yield item, sample.image


def thumbnail(image: bytes, side_px: int) -> bytes:
    """A JPEG of at most `side_px` per side. Equal images give equal bytes with the same version of Pillow.

    Args:
        image: an encoded image.
        side_px: 0 makes none: the result is empty.

    Raises:
        PictureError: it does not decode.
    """
    if not side_px:
        return b""
    buffer = io.BytesIO()
    small(image, side_px).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
