"""The format of `data/shards`: plain tars that stock webdataset reads, each with its index, and a manifest.

A tar sample is one *image*: `<key>.jpg` (resized to `image_px` square, aspect not kept), `<key>.txt` (its first kept
text) and `<key>.json` (`key`, `image_id`, and the parallel lists `keys`, `texts` of all its kept pairs). The training
unit is (image, one of its texts). `NNNNN.npy` beside `NNNNN.tar` says where its samples are: (images, 4) int64, a jpg's
offset and size, then its json's, in bytes; an offset is where the member's data begins in the tar, so that one range
read fetches it. `manifest.json` is written last: a folder without it holds no shards. It has a row for each tar and
none for each image: at the paper's 1.8 billion images (section 3) it has 50 MB, and all the indexes 58 GB.

An index of given tars (`align.training.given_tars`) is such a folder without tars: its manifest says where they lie.

The paper does not describe its storage; all of this is our decision.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from align.durable.files import sha256_file
from align.errors import CorruptError, DataError
from align.formats.json_file import StoredModel, read_if_exists
from align.interfaces.store import FetchTar

#: numpy parses the head of a file as Python does, and Python 3.11 fails where two threads do that at a time.
_ONE_HEAD = threading.Lock()

MANIFEST = "manifest.json"
#: In `store.cache`: a folder for each index of given tars.
GIVEN = "given"

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Shard(StoredModel):
    """One tar file.

    Attributes:
        path: relative to the folder of the manifest, such as `train/00000.tar`.
        sha256: hex digest of the whole file.
        num_pairs: kept texts of all its images.
        offsets_sha256: hex digest of its index.
        given: where a tar lies that others made: an absolute path or s3://... Its sha256 is of its samples. None, and
            not written: `path`.
    """

    path: str
    sha256: str
    num_bytes: int
    num_images: int
    num_pairs: int
    offsets_sha256: str
    given: str | None = None

    @property
    def name(self) -> str:
        """Its path without the ending."""
        return self.path.rpartition(".")[0]

    @property
    def offsets_path(self) -> str:
        """Its index, relative to the folder of the manifest."""
        return f"{self.name}.npy"


class Split(StoredModel):
    """The shards of one split, in reading order."""

    num_images: int
    num_pairs: int
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Split:
        """The split of these shards."""
        rows = tuple(shards)
        num_images, num_pairs = sum(row.num_images for row in rows), sum(row.num_pairs for row in rows)
        return cls(num_images=num_images, num_pairs=num_pairs, shards=rows)


@dataclass(frozen=True)
class ShardTask:
    """A tar as a task of a stage: its row of the manifest, and its split."""

    split: SplitName
    shard: Shard

    def __str__(self) -> str:
        return self.shard.path

    @property
    def name(self) -> str:
        """Of the files that the task makes."""
        return self.shard.name.replace("/", "-")


class Manifest(StoredModel):
    """The file. `digest` is the sha256 of the shards' sha256s in order and names the training data.

    Attributes:
        image_px: side of the images; 0 in an index of given tars, where each may have its own size.
        left_out: of given tars: why samples are left out -> how many. None, and not written: `align shard` made these.
    """

    schema_version: Literal[2] = 2
    image_px: int
    digest: str
    splits: dict[SplitName, Split]
    left_out: dict[str, int] | None = None

    @property
    def tars(self) -> dict[str, Shard]:
        """The tars of all splits, by their paths."""
        return {task.shard.path: task.shard for task in self.tasks}

    @property
    def tasks(self) -> list[ShardTask]:
        """One for each tar, in the order of SPLITS."""
        splits = [name for name in SPLITS if name in self.splits]
        return [ShardTask(name, shard) for name in splits for shard in self.splits[name].shards]


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


def read_manifest(shards: Path, *, given: bool = False) -> Manifest:
    """Reads and checks `manifest.json`. Raises DataError if there is no manifest, or it is an index of given tars, and
    the caller takes none; FormatError if it has another schema_version or layout.
    """
    path = shards / MANIFEST
    manifest = read_if_exists(Manifest, path, "run `align shard` again")
    if manifest is None:
        raise DataError(f"{path}: no such file; run `align shard` first")
    if manifest.left_out is not None and not given:
        raise DataError(f"{path}: an index of given tars, for `--data` alone; name a folder that `align shard` wrote")
    return manifest


def read_offsets(path: Path, sha256: str) -> NDArray[np.int64]:
    """Reads the index of a tar, (images, 4), see above. Raises CorruptError if it is missing, or has another sha256."""
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CorruptError(f"{path}: {'damaged' if data else 'missing'}; run `dvc checkout`, or `align shard` again")
    with _ONE_HEAD:
        offsets: NDArray[np.int64] = np.load(io.BytesIO(data), allow_pickle=False)
    return offsets


def index_bytes(offsets: Sequence[tuple[int, int, int, int]]) -> bytes:
    """What the index of a tar is."""
    buffer = io.BytesIO()
    np.save(buffer, np.array(offsets, dtype="<i8").reshape(-1, 4))
    return buffer.getvalue()


def digest_of(shards: Iterable[Shard]) -> str:
    """sha256 of the shards' sha256s in order."""
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(shard.sha256.encode("ascii"))
    return digest.hexdigest()


def parse_row(data: bytes, size: int, tar: Path) -> dict[str, Any]:
    """A sample's json, which the index says has this size. Raises CorruptError if it is not the json of a sample."""
    try:
        row = json.loads(data) if len(data) == size else None
    except ValueError:
        row = None
    if not isinstance(row, dict) or not {"key", "image_id", "keys", "texts"} <= row.keys():
        raise CorruptError(f"{tar}: cut off or damaged, it is not what {MANIFEST} says; run `align shard` again")
    return row


def local_tar(shards: Path, shard: Shard, fetch: FetchTar | None) -> Path:
    """A tar on this machine: in the folder of the manifest, or fetched. Raises DataError if it is missing."""
    path = shards / shard.path
    if path.is_file():
        return path
    if fetch is None:
        raise DataError(
            f"{path}: named in {MANIFEST} but missing; run `align shard` again, or `dvc pull`, or set store.objects to "
            "the store that has it"
        )
    return fetch(shard.sha256, shard.num_bytes)


def iter_texts(shards: Path, split: SplitName, fetch: FetchTar | None) -> Iterator[list[str]]:
    """Yields the texts of each image of a split; neither pictures nor tars that are not needed yet are read. Raises
    DataError, FormatError as `read_manifest` and `local_tar`; CorruptError if a shard or its index is damaged.
    """
    for shard in read_manifest(shards).splits[split].shards:
        for row, _ in _rows(shards, shard, local_tar(shards, shard, fetch)):
            yield row["texts"]


def iter_samples(shards: Path, split: SplitName, fetch: FetchTar | None = None) -> Iterator[Sample]:
    """Yields the samples of a split in the order of the manifest, one image in memory at a time. Raises DataError,
    FormatError as `read_manifest` and `local_tar`; CorruptError if a shard's bytes or its index do not match the
    manifest.
    """
    for shard in read_manifest(shards).splits[split].shards:
        path = local_tar(shards, shard, fetch)
        if sha256_file(path) != shard.sha256:
            raise CorruptError(f"{path}: sha256 does not match {MANIFEST}; run `align shard` again")
        for row, picture in _rows(shards, shard, path):
            yield Sample(row["key"], row["image_id"], picture(), tuple(row["keys"]), tuple(row["texts"]))


def _rows(shards: Path, shard: Shard, path: Path) -> Iterator[tuple[dict[str, Any], Callable[[], bytes]]]:
    """The json of each sample of a tar, and what reads its picture."""
    offsets = read_offsets(shards / shard.offsets_path, shard.offsets_sha256)
    with path.open("rb") as file:
        for start, num_bytes, offset, size in offsets.tolist():
            row = parse_row(os.pread(file.fileno(), size, offset), size, path)
            yield row, partial(os.pread, file.fileno(), num_bytes, start)
