"""The format of `data/shards`: plain tars that stock webdataset reads, and a manifest with checksums and an index.

A tar sample is one *image*: `<key>.jpg` (resized to `image_px` square, aspect not kept), `<key>.txt` (its first kept
text) and `<key>.json` (`key`, `image_id`, and the parallel lists `keys`, `texts` of all its kept pairs). The training
unit is (image, one of its texts). `manifest.json` is written last: a folder without it holds no shards.

The paper does not describe its storage; all of this is our decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.durable.files import sha256_file
from align.errors import CorruptError, DataError
from align.formats.json_file import StoredModel, parse

MANIFEST = "manifest.json"

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Shard(StoredModel):
    """One tar file.

    Attributes:
        path: relative to the folder of the manifest, such as `train/00000.tar`.
        sha256: hex digest of the whole tar.
        num_pairs: kept texts of all its images.
        offsets: one row per image: jpg offset, jpg size, json offset, json size, all in bytes. An offset is where the
            member's data begins in the tar, so that one range read fetches it.
    """

    path: str
    sha256: str
    num_bytes: int
    num_images: int
    num_pairs: int
    offsets: tuple[tuple[int, int, int, int], ...]


class Split(StoredModel):
    """The shards of one split, in reading order."""

    num_images: int
    num_pairs: int
    shards: tuple[Shard, ...]


class Manifest(StoredModel):
    """The file. `digest` is the sha256 of the shards' sha256s in order and names the training data."""

    schema_version: Literal[1] = 1
    image_px: int
    digest: str
    splits: dict[SplitName, Split]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and all its kept pairs.

    Attributes:
        key: key of the tar sample.
        image_id: sha256 of the image's original bytes, before the resize.
        image: JPEG, `image_px` square.
        keys: the kept pairs' keys, parallel to `texts`.
        texts: at least one.
    """

    key: str
    image_id: str
    image: bytes
    keys: tuple[str, ...]
    texts: tuple[str, ...]


def read_manifest(shards: Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
        DataError: there is no manifest.
        FormatError: it has another schema_version or layout.
    """
    path = shards / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run `align shard` first") from None
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: Path) -> Manifest:
    """Parses the text of a manifest. Errors name `path`. Raises FormatError as `read_manifest`."""
    return parse(Manifest, data, path, "run `align shard` again")


def digest_of(shards: Iterable[Shard]) -> str:
    """sha256 of the shards' sha256s in order."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(shard.sha256.encode("ascii"))
    return digest.hexdigest()


def iter_samples(shards: Path, split: SplitName) -> Iterator[Sample]:
    """Yields the samples of a split in the order of the manifest, one image in memory at a time.

    Raises:
        DataError: there is no manifest, or a shard of it is missing.
        FormatError: the manifest has another schema_version or layout.
        CorruptError: a shard's bytes do not match the manifest.
    """
    for shard in read_manifest(shards).splits[split].shards:
        path = shards / shard.path
        if not path.is_file():
            raise DataError(f"{path}: missing, though {MANIFEST} names it; run `align shard` again")
        if sha256_file(path) != shard.sha256:
            raise CorruptError(f"{path}: sha256 does not match {MANIFEST}; run `align shard` again")
        with path.open("rb") as file:
            for jpg_offset, jpg_size, json_offset, json_size in shard.offsets:
                file.seek(jpg_offset)
                image = file.read(jpg_size)
                file.seek(json_offset)
                row = json.loads(file.read(json_size))
                yield Sample(row["key"], row["image_id"], image, tuple(row["keys"]), tuple(row["texts"]))
