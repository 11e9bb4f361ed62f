"""Checks data/shards sample by sample against the manifest: what the quality gate over shards counts.

Each tar is a separate task: it is read as webdataset reads it, its bytes are hashed, and every picture in it is
decoded. Then the engine joins its pairs with the filter's decisions. Faults are counted and the first few named; bad
bytes raise no error.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import track
from align.durable.processes import in_processes
from align.errors import CorruptError, DataError
from align.formats.shards import MANIFEST, Manifest, Shard, digest_of, read_offsets
from align.interfaces.sql import Engine
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
#: The joins with the decisions (views `decisions` and `pairs`), which must be 0, too: name -> (what it counts, SQL).
JOINS = {
    "kept_pairs_not_in_shards": (
        "kept pairs that no shard holds",
        "SELECT count(*) FROM decisions LEFT JOIN pairs ON decisions.key = pairs.key WHERE keep AND pairs.key IS NULL",
    ),
    "shard_pairs_not_kept": (
        "pairs of shards that the filter did not keep, or kept with another text or image",
        "SELECT count(*) FROM pairs LEFT JOIN decisions ON pairs.key = decisions.key AND decisions.keep "
        "AND pairs.text = decisions.text AND pairs.image_id = decisions.image_id WHERE decisions.key IS NULL",
    ),
    "shard_pairs_twice": (
        "pairs that are in the shards twice",
        "SELECT count(*) FROM (SELECT key FROM pairs GROUP BY key HAVING count(*) > 1) AS repeated",
    ),
    "images_in_two_splits": (
        "images that are in more than one split",
        "SELECT count(*) FROM (SELECT image_id FROM (SELECT DISTINCT image_id, split FROM pairs) AS by_split "
        "GROUP BY image_id HAVING count(*) > 1) AS leaked",
    ),
}

#: The pairs that a shard holds, for the join with the decisions.
PAIRS = pa.schema([(name, pa.string()) for name in ("key", "image_id", "split", "text")])

#: So many faults of a kind are named; others are only counted.
_NAMED = 5


@dataclass(frozen=True)
class ShardTask:
    """One tar to check. Can be pickled.

    Attributes:
        directory: data/shards.
        split: the split it belongs to.
        shard: its row of the manifest.
        image_px: side of its pictures.
        pairs: the parquet file to write, with the columns of PAIRS.
        fetch: for tars that are not in the folder but in an object store; None without one.
    """

    directory: Path
    split: str
    shard: Shard
    image_px: int
    pairs: Path
    fetch: FetchTar | None = None


@dataclass
class Faults:
    """How many faults of each kind there are.

    Attributes:
        counts: fault -> number, for each of FAULTS.
        examples: fault -> where the first few are.
        num_images: images that were checked.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAULTS, 0))
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_images: int = 0

    def add(self, kind: str, where: str) -> None:
        """Counts a fault."""
        self.counts[kind] += 1
        self.examples.setdefault(kind, []).append(where)
        del self.examples[kind][_NAMED:]

    def merge(self, other: Faults) -> None:
        """Adds the faults of another task."""
        self.num_images += other.num_images
        for kind, num in other.counts.items():
            self.counts[kind] += num
        for kind, examples in other.examples.items():
            self.examples[kind] = [*self.examples.get(kind, []), *examples][:_NAMED]


def check_shards(
    directory: Path, manifest: Manifest, pairs: Path, fetch: FetchTar | None, num_workers: int | None
) -> Faults:
    """Checks the folder and all its tars, in worker processes.

    Args:
        directory: data/shards.
        manifest: of it.
        pairs: the folder to make; it gets one parquet file per tar, with the columns of PAIRS.
        fetch: for tars that are not in the folder but in an object store; None without one.
        num_workers: processes; None means one per core.

    Raises:
        ServiceError: the object store is unavailable.
    """
    faults = check_folder(directory, manifest)
    pairs.mkdir()
    tasks = shard_tasks(directory, manifest, pairs, fetch)
    num_processes = max(1, min(num_workers or os.cpu_count() or 1, len(tasks)))
    results = in_processes(
        check_shard, tasks, num_processes, name_of=lambda task: str(task.directory / task.shard.path)
    )
    for result in track(results, what="validate_shards: shards", total=len(tasks)):
        faults.merge(result)
    return faults


def join_decisions(engine: Engine, pairs: Path, decisions: Path) -> dict[str, int]:
    """The counts of JOINS; none if there are no shards.

    Args:
        engine: gets the views `pairs` and `decisions`.
        pairs: the folder that `check_shards` made.
        decisions: the filter's decisions.parquet.
    """
    if not any(pairs.iterdir()):
        return {}
    engine.view("pairs", pairs / "*.parquet")
    engine.view("decisions", decisions)
    return {name: engine.rows(query)[0][0] for name, (_, query) in JOINS.items()}


def shard_tasks(directory: Path, manifest: Manifest, scratch: Path, fetch: FetchTar | None) -> list[ShardTask]:
    """One task per shard; their tables of pairs go to `scratch`."""
    return [
        ShardTask(
            directory, split, shard, manifest.image_px, scratch / f"{shard.path.replace('/', '-')}.parquet", fetch
        )
        for split, part in manifest.splits.items()
        for shard in part.shards
    ]


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


def check_shard(task: ShardTask) -> Faults:
    """Reads one tar, decodes every picture, and writes its pairs; memory holds the tar's pairs and one picture.

    Raises:
        ServiceError: the object store is unavailable, which is not a fault of the data.
    """
    faults = Faults()
    path = _tar(task, faults)
    pairs = _checked_pairs(path, task, faults) if path is not None else []
    pq.write_table(pa.Table.from_pylist(pairs, PAIRS), task.pairs)
    return faults


def _tar(task: ShardTask, faults: Faults) -> Path | None:
    """The tar on this machine, fetched if necessary; None if it is not available, which is a fault."""
    path, shard = task.directory / task.shard.path, task.shard
    if path.is_file():
        return path
    try:
        if task.fetch is not None:
            return task.fetch(shard.sha256, shard.num_bytes)
        faults.add("shards_missing", shard.path)
    except CorruptError:
        faults.add("shards_changed", shard.path)
    except DataError:
        faults.add("shards_missing", shard.path)
    return None


def _checked_pairs(path: Path, task: ShardTask, faults: Faults) -> list[dict[str, str]]:
    """The pairs of the tar. Adds its faults to `faults`."""
    shard = task.shard
    pairs: list[dict[str, str]] = []
    offsets: list[list[int]] = []
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256 or file.tell() != shard.num_bytes:
            faults.add("shards_changed", shard.path)
        file.seek(0)
        try:
            for key, members in _samples(file):
                faults.num_images += 1
                where = f"{shard.path}: {key}"
                row = _row(key, members)
                if row is None:
                    faults.add("samples_incomplete", where)
                else:
                    offsets.append([*members["jpg"][:2], *members["json"][:2]])
                    pairs += [
                        {"key": pair_key, "image_id": row["image_id"], "split": task.split, "text": text}
                        for pair_key, text in zip(row["keys"], row["texts"], strict=True)
                    ]
                if "jpg" in members:
                    _check_picture(members["jpg"][2], task.image_px, where, faults)
        except tarfile.TarError as error:
            faults.add("samples_incomplete", f"{shard.path}: {error}")
    if (faults.num_images, len(pairs)) != (shard.num_images, shard.num_pairs):
        faults.add("shards_of_another_count", shard.path)
    try:
        index = read_offsets(task.directory / shard.offsets_path, shard.offsets_sha256).tolist()
    except CorruptError:
        index = None
    if index != offsets:
        faults.add("shards_of_another_index", shard.path)
    return pairs


def _samples(file: Any) -> Iterator[tuple[str, dict[str, tuple[int, int, bytes]]]]:
    """(key, extension -> (offset, size, bytes)) of each sample: consecutive members with one key, as in webdataset."""
    last, members = "", dict[str, tuple[int, int, bytes]]()
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


def _row(key: str, members: dict[str, tuple[int, int, bytes]]) -> dict[str, Any] | None:
    """The sample's json; None if a member is missing, or json and txt disagree."""
    if not {"jpg", "txt", "json"} <= members.keys():
        return None
    try:
        row = json.loads(members["json"][2])
        keys, texts = row["keys"], row["texts"]
        whole = row["key"] == key and 0 < len(keys) == len(texts) and all(texts) and isinstance(row["image_id"], str)
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
