"""The images of the shards, in the order of the index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.formats.image_index import IndexedImage
from align.formats.shards import SPLITS, iter_samples, read_manifest


def read_images(shards: Path, items: list[IndexedImage]) -> Iterator[bytes]:
    """Yields the bytes of every image of every split, and appends the image's description to `items`.

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
            items.append(IndexedImage(sample.key, sample.image_id, sample.texts, split, path, offset, size))
            yield sample.image
