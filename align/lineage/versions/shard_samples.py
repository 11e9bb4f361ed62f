"""Reads data/shards without a picture, to see which pictures and texts it holds."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.formats.shards import (
    MANIFEST,
    SPLITS,
    Shard,
    SplitName,
    local_tar,
    parse_row,
    read_manifest,
    read_offsets,
)
from align.interfaces.store import FetchTar


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A tar sample of data/shards, without its picture.

    Attributes:
        split: `train`, `val` or `test`.
        tar: path of its tar within data/shards.
        key: of the sample within the tar.
        image_id: sha256 of the picture's original bytes.
        keys: of its pairs, parallel to `texts`.
        texts: of its pairs.
        offset_bytes: where the picture's JPEG begins in the tar.
        size_bytes: its length.
    """

    split: SplitName
    tar: str
    key: str
    image_id: str
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    offset_bytes: int
    size_bytes: int


#: The files that these functions read of data/shards.
SHARD_FILES = (MANIFEST, "*.npy", "*.tar")


def iter_stored_samples(
    shards: Path, fetch: FetchTar | None = None, image_ids: Collection[str] | None = None
) -> Iterator[StoredSample]:
    """Yields the samples of data/shards, in the order of the manifest.

    Args:
        shards: data/shards or an older version of it, with its manifest and indexes.
        fetch: (sha256, bytes) -> path of a tar that is not in the folder.
        image_ids: of the pictures that are wanted; None: all.

    Raises:
        DataError: there is no manifest, or a tar is missing.
        FormatError: the manifest has another schema_version or layout.
        CorruptError: a tar or its index is cut off or damaged.
    """
    manifest = read_manifest(shards)
    for split in SPLITS:
        for shard in manifest.splits[split].shards:
            path = local_tar(shards, shard, fetch)
            with path.open("rb") as file:
                for jpg_offset, jpg_size, offset, size in _offsets(shards, shard):
                    row = parse_row(os.pread(file.fileno(), size, offset), size, path)
                    if image_ids is None or row["image_id"] in image_ids:
                        yield _sample(split, shard, row, (jpg_offset, jpg_size))


def samples_of(shards: Path, split: SplitName, shard: Shard, numbers: Iterable[int]) -> Iterator[StoredSample]:
    """Some samples of one tar, by their numbers in it. Raises CorruptError if it or its index is damaged."""
    offsets, tar = _offsets(shards, shard), shards / shard.path
    with tar.open("rb") as file:
        for jpg_offset, jpg_size, offset, size in (offsets[number] for number in numbers):
            row = parse_row(os.pread(file.fileno(), size, offset), size, tar)
            yield _sample(split, shard, row, (jpg_offset, jpg_size))


def count_pairs(shards: Path, image_ids: frozenset[str], fetch: FetchTar | None = None) -> dict[str, int]:
    """Split -> number of pairs with one of these pictures, as `counted`. Errors as `iter_stored_samples`."""
    return counted(iter_stored_samples(shards, fetch, image_ids))


def counted(samples: Iterable[StoredSample], text: str | None = None) -> dict[str, int]:
    """Split -> number of pairs of these samples (with this text, if one is given); splits without a pair left out."""
    counts: Counter[str] = Counter()
    for sample in samples:
        counts[sample.split] += sum(1 for one in sample.texts if text is None or one == text)
    return +counts


def _offsets(shards: Path, shard: Shard) -> list[list[int]]:
    rows: list[list[int]] = read_offsets(shards / shard.offsets_path, shard.offsets_sha256).tolist()
    return rows


def _sample(split: SplitName, shard: Shard, row: dict[str, Any], picture: tuple[int, int]) -> StoredSample:
    lists = tuple(row["keys"]), tuple(row["texts"])
    return StoredSample(split, shard.path, row["key"], row["image_id"], *lists, *picture)
