"""The format of `data/shards`: plain tars that stock webdataset reads, and a manifest with a checksum and an index.

A tar sample is one *image*: `<key>.jpg` (resized to `image_px` square, aspect not kept), `<key>.txt` (its first kept
text) and `<key>.json` (`key`, `image_id`, and the parallel lists `keys`, `texts` of all its kept pairs). The training
unit is (image, one of its texts). `manifest.json` is written last: without it there are no shards.

The paper says nothing about storage; all of this is our decision.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from align.errors import CorruptError, DataError, FormatError
from align.files import sha256_file, write_bytes

MANIFEST = "manifest.json"

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Shard(_Frozen):
    """One tar file.

    Attributes:
        path: relative to the folder of the manifest, such as `train/00000.tar`.
        sha256: hex digest of the whole tar.
        num_pairs: kept texts over all its images.
        offsets: one row an image: jpg offset, jpg size, json offset, json size, all in bytes. Offsets point at the
            member's data within the tar, so that one range read fetches it.
    """

    path: str
    sha256: str
    num_bytes: int
    num_images: int
    num_pairs: int
    offsets: tuple[tuple[int, int, int, int], ...]


class Split(_Frozen):
    """The shards of one split, in reading order."""

    num_images: int
    num_pairs: int
    shards: tuple[Shard, ...]


class Manifest(_Frozen):
    """What `data/shards` holds. `digest` is sha256 over the shards' sha256s in order: it names the training data."""

    schema_version: Literal[1] = 1
    image_px: int
    digest: str
    splits: dict[SplitName, Split]


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and all its kept pairs.

    Attributes:
        key: key of the tar sample.
        image_id: sha256 of the image's bytes as they came, before the resize.
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
    """Checks the text of a manifest, which may have been read in another way; `path` is for errors. Raises FormatError
    as `read_manifest`."""
    try:
        values: Any = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{path}: not valid JSON ({error}); run `align shard` again") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != 1:
        raise FormatError(f"{path}: schema_version {version!r}, but this code reads 1; run `align shard` again")
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(f"{path}: {where}: {first['msg']}; run `align shard` again") from None


def write_manifest(manifest: Manifest, shards: Path) -> None:
    """Writes `manifest.json`, compact: most of it is offsets."""
    write_bytes(shards / MANIFEST, json.dumps(manifest.model_dump(), separators=(",", ":")).encode() + b"\n")


def digest_of(shards: Iterable[Shard]) -> str:
    """sha256 over the shards' sha256s in order."""
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
            raise DataError(f"{path}: named in {MANIFEST} but missing; run `align shard` again")
        if sha256_file(path) != shard.sha256:
            raise CorruptError(f"{path}: sha256 does not match {MANIFEST}; run `align shard` again")
        with path.open("rb") as file:
            for jpg_offset, jpg_size, json_offset, json_size in shard.offsets:
                file.seek(jpg_offset)
                image = file.read(jpg_size)
                file.seek(json_offset)
                row = json.loads(file.read(json_size))
                yield Sample(row["key"], row["image_id"], image, tuple(row["keys"]), tuple(row["texts"]))
