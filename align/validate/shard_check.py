"""Checks data/shards sample by sample against the manifest: what the quality gate over shards counts.

Each tar is a task: it is read as webdataset reads it, its bytes are hashed, and every picture in it is decoded. Faults
are counted and the first few named; bad bytes raise no error.

Whether the shards hold exactly the kept pairs is decided by a sum: of the sha256 of each pair, over all shards and over
all decisions. Equal sums mean equal pairs, since keys are unique. Tars of `val` and `test` come first; those of `train`
compare their images with these. Where the sums differ, `align shard` again is the remedy, whichever pair is wrong.

    checked/NAME/faults.json    what is wrong with a tar, and the sum of its pairs
    checked/NAME/images.npy     its images, as numbers; not of train
    held_out/images.npy         the images of val and test
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq

from align.durable.steps import Step, Work
from align.errors import CorruptError, DataError
from align.formats.filtered import decision_parts
from align.formats.shards import (
    MANIFEST,
    Manifest,
    Shard,
    ShardTask,
    digest_of,
    index_bytes,
    local_tar,
)
from align.interfaces.executor import Executor, Task
from align.interfaces.store import FetchTar
from align.pairs.picture import PictureError, decode

#: What must be 0: fault -> what it counts, in the order of the gate.
FAULTS = {
    "shards_missing": "shards that the manifest names but that are missing",
    "shards_unlisted": "tars that the manifest does not name",
    "shards_changed": "shards whose size or sha256 differs from the manifest",
    "shards_of_another_count": "shards with another number of images or pairs than the manifest says",
    "shards_of_another_index": "shards whose samples are not where their index says",
    "manifest_of_another_digest": "digests of the manifest that do not match its own shards",
    "samples_incomplete": "samples without their jpg, txt or json, or whose json and txt disagree",
    "samples_undecodable": "samples whose picture does not decode",
    "samples_of_another_size": "samples whose picture is not of the manifest's size",
}
#: Extension -> (offset, size, bytes) of a sample's files; and the sample's key with them.
_Members = dict[str, tuple[int, int, bytes]]
_Found = tuple[str, _Members]
#: So many faults of a kind are named; others are only counted.
_NAMED = 5


#: The results in the work folder.
RESULTS = _CHECKED, _HELD_OUT = "checked", "held_out"
_FAULTS, _IMAGES = "faults.json", "images.npy"
#: Digests of pairs are added modulo this.
_SUM = 1 << 256


@dataclass
class Faults:
    """How many faults of each kind there are.

    Attributes:
        counts: fault -> number, for each of FAULTS.
        examples: fault -> where the first few are.
        num_images: images that were checked.
        num_leaked: images that are in another split, too.
        pairs: the sum of its pairs, see `pair_number`.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_images: int = 0
    num_leaked: int = 0
    pairs: int = 0

    def add(self, kind: str, where: str) -> None:
        """Counts a fault."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, []).append(where)
        del self.examples[kind][_NAMED:]

    def merge(self, other: Faults) -> None:
        """Adds the faults of another task."""
        self.num_images += other.num_images
        self.num_leaked += other.num_leaked
        self.pairs = (self.pairs + other.pairs) % _SUM
        for kind, num in other.counts.items():
            self.counts[kind] += num
        for kind, examples in other.examples.items():
            self.examples[kind] = [*self.examples.get(kind, []), *examples][:_NAMED]


@dataclass(frozen=True)
class ShardsWork:
    """The work folder, and what every task needs. Can be pickled.

    Attributes:
        work: the results of the steps.
        directory: data/shards.
        image_px: side of the pictures.
        fetch: for tars that are not in the folder but in an object store; None without one.
    """

    work: Work
    directory: Path
    image_px: int
    fetch: FetchTar | None = None

    def opened(self, here: Work) -> AbstractContextManager[ShardsWork]:
        """The same on the machine of a task: the resource of a step."""
        return nullcontext(replace(self, work=here))


def check_shards(work: ShardsWork, executor: Executor, manifest: Manifest) -> Faults:
    """Checks the folder and all its tars.

    Raises:
        ServiceError: the object store is unavailable.
    """
    faults = check_folder(work.directory, manifest)
    tasks = manifest.tasks
    held_out = [task for task in tasks if task.split != "train"]
    step = Step(_CHECKED, check_shard, "validate_shards: shards", resource=work.opened)
    work.work.run(step, {task.name: task for task in held_out}, executor)
    work.work.make(_HELD_OUT, partial(_join_held_out, work, held_out))
    every = np.load(work.work.folder / _HELD_OUT / _IMAGES)
    faults.num_leaked = int(np.count_nonzero(every[1:] == every[:-1]))
    work.work.run(replace(step, needs=[_HELD_OUT]), {task.name: task for task in tasks}, executor)
    for task in tasks:
        found = json.loads((work.work.folder / _CHECKED / task.name / _FAULTS).read_bytes())
        faults.merge(Faults(**found["faults"]))
        if found["offsets_sha256"] is not None:
            index = work.directory / task.shard.offsets_path
            here = hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None
            if not here == found["offsets_sha256"] == task.shard.offsets_sha256:
                faults.add("shards_of_another_index", task.shard.path)
    return faults


def _join_held_out(work: ShardsWork, held_out: list[ShardTask], out: Path) -> None:
    """Writes the images of val and test, in order; those that are in both twice."""
    checked = work.work.folder / _CHECKED
    splits = [
        np.unique(np.concatenate([np.zeros(0, np.uint64), *(np.load(file) for file in files)]))
        for split in ("val", "test")
        for files in [[checked / task.name / _IMAGES for task in held_out if task.split == split]]
    ]
    np.save(out / _IMAGES, np.sort(np.concatenate(splits)))


def pair_number(key: str, image_id: str, text: str) -> int:
    """The sha256 of a pair; sums of these, modulo 2 to the power of 256, are equal for equal sets of pairs."""
    data = f"{len(key)} {len(image_id)} {key}{image_id}{text}".encode()
    return int.from_bytes(hashlib.sha256(data).digest(), "little")


def kept_pairs(filtered: Path, executor: Executor) -> int:
    """The sum of the kept pairs; each file of decisions is a task."""
    return sum(executor.map(Task(nullcontext, _kept_pairs), decision_parts(filtered))) % _SUM


def _kept_pairs(_: Path | None, part: Path) -> int:
    total, columns = 0, ["key", "image_id", "text"]
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(columns=["keep", *columns]):
            kept = batch.filter(batch["keep"]).select(columns).to_pydict()
            total += sum(map(pair_number, *kept.values()))
    return total % _SUM


def check_folder(directory: Path, manifest: Manifest) -> Faults:
    """Compares the folder's file names, and the manifest's sums, with the shards that the manifest lists."""
    faults = Faults()
    listed = {shard.path for part in manifest.splits.values() for shard in part.shards}
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*.tar")}
    for path in sorted(present - listed):
        faults.add("shards_unlisted", path)
    if digest_of(shard for part in manifest.splits.values() for shard in part.shards) != manifest.digest:
        faults.add("manifest_of_another_digest", MANIFEST)
    for name, part in manifest.splits.items():
        sums = sum(shard.num_images for shard in part.shards), sum(shard.num_pairs for shard in part.shards)
        if sums != (part.num_images, part.num_pairs):
            faults.add("shards_of_another_count", f"split {name}")
    return faults


def check_shard(work: ShardsWork, out: Path, task: ShardTask) -> None:
    """Reads one tar and decodes every picture; memory holds one sample, and a number for each image.

    Raises:
        ServiceError: the object store is unavailable, which is not a fault of the data.
    """
    faults, images, offsets_sha256 = Faults(), list[int](), None
    path = _file(work, task.shard, faults)
    if path is not None:
        offsets_sha256 = _check_tar(path, work, task, faults, images)
    numbers = np.array(images, np.uint64)
    if task.split == "train":
        held_out = np.load(work.work.folder / _HELD_OUT / _IMAGES, mmap_mode="r")
        if len(held_out):
            nearest = held_out[np.minimum(np.searchsorted(held_out, numbers), len(held_out) - 1)]
            faults.num_leaked = int(np.count_nonzero(nearest == numbers))
    else:
        np.save(out / _IMAGES, numbers)
    found = {"faults": asdict(faults), "offsets_sha256": offsets_sha256}
    (out / _FAULTS).write_text(json.dumps(found), encoding="utf-8")


def _file(work: ShardsWork, row: Shard, faults: Faults) -> Path | None:
    """A tar on this machine; None if it is not available, which is a fault."""
    try:
        return local_tar(work.directory, row, work.fetch)
    except CorruptError:
        faults.add("shards_changed", row.path)
    except DataError:
        faults.add("shards_missing", row.path)
    return None


def _check_tar(path: Path, work: ShardsWork, task: ShardTask, faults: Faults, images: list[int]) -> str:
    """Adds the faults of a tar, and its images as numbers. Returns the sha256 that its index should have."""
    shard, num_pairs, offsets = task.shard, 0, list[tuple[int, int, int, int]]()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256 or file.tell() != shard.num_bytes:
            faults.add("shards_changed", shard.path)
        file.seek(0)
        for key, members, row in _rows(
            _samples(file), lambda error: faults.add("samples_incomplete", f"{shard.path}: {error}")
        ):
            faults.num_images += 1
            where = f"{shard.path}: {key}"
            if row is None:
                faults.add("samples_incomplete", where)
            else:
                offsets.append((*members["jpg"][:2], *members["json"][:2]))
                images.append(int.from_bytes(hashlib.sha256(row["image_id"].encode()).digest()[:8], "little"))
                for pair in zip(row["keys"], row["texts"], strict=True):
                    faults.pairs = (faults.pairs + pair_number(pair[0], row["image_id"], pair[1])) % _SUM
                num_pairs += len(row["keys"])
            if "jpg" in members:
                _check_picture(members["jpg"][2], work.image_px, where, faults)
    if (faults.num_images, num_pairs) != (shard.num_images, shard.num_pairs):
        faults.add("shards_of_another_count", shard.path)
    return hashlib.sha256(index_bytes(offsets)).hexdigest()


def _rows(
    samples: Iterator[_Found], damaged: Callable[[tarfile.TarError], None]
) -> Iterator[tuple[str, _Members, dict[str, Any] | None]]:
    """Key, members and json of each sample up to damage; the json is None if it cannot be used."""
    try:
        for key, members in samples:
            yield key, members, _row(key, members)
    except tarfile.TarError as error:
        damaged(error)


def _samples(file: BinaryIO) -> Iterator[_Found]:
    """Each sample of a tar: consecutive members with one key, as in webdataset."""
    last, members = "", _Members()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            content = tar.extractfile(member)
            if content is None:
                continue
            if key != last and members:
                yield last, members
                members = {}
            last = key
            members[extension] = (member.offset_data, member.size, content.read())
    if members:
        yield last, members


def _row(key: str, members: _Members) -> dict[str, Any] | None:
    """The sample's json; None if a member is missing, or json and txt disagree."""
    if not {"jpg", "txt", "json"} <= members.keys():
        return None
    try:
        row = json.loads(members["json"][2])
        keys, texts = row["keys"], row["texts"]
        "".join((row["image_id"], *keys, *texts)).encode()  # all are texts that UTF-8 can write
        parallel = 0 < len(keys) == len(texts) == len(row.get("sources", texts))
        whole = row["key"] == key and parallel and all(texts)
        return row if whole and members["txt"][2].decode("utf-8") == texts[0] else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _check_picture(data: bytes, image_px: int, where: str, faults: Faults) -> None:
    try:
        picture = decode(data, max_pixels=max(1, image_px) ** 2 * 16)
    except PictureError:
        faults.add("samples_undecodable", where)
    else:
        if picture.size != (image_px, image_px):
            faults.add("samples_of_another_size", where)
