"""Writing shards of pictures that already have their size, against only reading and writing the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from align.config.shard import ShardConfig
from align.durable.pieces import Pieces
from align.formats.raw import raw_shards
from align.ingest.writer import RawShardWriter, write_raw_manifest
from align.services.executors.executors import LocalExecutor
from align.shard.assignment import ShardPlan, read_plan
from align.shard.gather import resize
from align.shard.work_folder import ShardWork, plan_once, tar_locations, write_shards
from benchmarks.measure import Comparison, compare, in_process
from benchmarks.world import World
from tests.support import local_store, small_data

NUM_PICTURES = 8000
#: As img2dataset and `download.jpeg_quality` leave pictures that they shrink.
QUALITY = 95
REPETITIONS = 7
WHERE = ("tar", "offset", "size")
CONFIG = ShardConfig(
    image_px=346, jpeg_quality=92, images_per_shard=2000, seed=0, val_fraction=0.0, test_fraction=0.0,
    train_fraction=1.0, near_duplicate_bits=0, max_cluster_share=1.0,
)  # fmt: skip


def run(world: World) -> list[Comparison]:
    root = world.root / "sharding"
    num_bytes = make_inputs(world, root)
    work = work_in(root)
    plan = plan_once(work, LocalExecutor(1), root / "filtered")  # which is not what is measured
    copies = places(root)
    spent: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for repetition in range(REPETITIONS + 1):
        sides: list[tuple[str, Callable[[], object]]] = [
            ("ours", partial(ours, work, plan)), ("theirs", partial(copy, root / "copy", copies)),
        ]  # fmt: skip
        for name, write in sides[:: 1 if repetition % 2 else -1]:
            clean(root)
            wall, cpu = time.perf_counter(), time.process_time()
            write()
            if repetition:
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    clean(root)
    _, peak = in_process(ours, work, plan)
    cpu_ratio = statistics.median(our / their for (_, our), (_, their) in zip(*spent.values(), strict=True))
    note = (
        f"wall-clock, flushed to disk, one process each; {num_bytes / NUM_PICTURES / 1000:.0f} KB a picture; CPU "
        f"{cpu_ratio:.2f}x, with the SHA-256 of every byte; memory {peak >> 20} MB"
    )
    return [
        compare(
            "shard writing, pictures at size", "read + write of the bytes", "images / s", items=NUM_PICTURES,
            ours_s=[wall for wall, _ in spent["ours"]], theirs_s=[wall for wall, _ in spent["theirs"]], note=note,
        )
    ]  # fmt: skip


def work_in(root: Path) -> ShardWork:
    """The work folder, as `align shard` has it."""
    store = local_store.config(root, None)
    (root / ".shards.part").mkdir()
    tars = tar_locations(raw_shards(root / "raw"), store)
    return ShardWork(Pieces(root / ".shards.part"), root / "raw", tars, store, CONFIG)


def ours(work: ShardWork, plan: ShardPlan) -> None:
    """The shards of `align shard`, on one core."""
    write_shards(work, LocalExecutor(1), plan)


def clean(root: Path) -> None:
    """What was written goes; the plan stays."""
    for folder in (root / "copy", root / ".shards.part/train", root / ".shards.part/.done"):
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()


def copy(folder: Path, files: list[list[tuple[Path, int, int]]]) -> None:
    """Reads each picture where it lies, in the order of the shards, and writes them, a file a shard."""
    folder.mkdir()
    for number, images in enumerate(files):
        with (folder / f"{number:05d}").open("wb", buffering=1 << 20) as target:
            descriptors = {path: os.open(path, os.O_RDONLY) for path in {path for path, _, _ in images}}
            for path, offset, size in images:
                target.write(os.pread(descriptors[path], size, offset))
            for descriptor in descriptors.values():
                os.close(descriptor)
            target.flush()
            os.fsync(target.fileno())


def places(root: Path) -> list[list[tuple[Path, int, int]]]:
    """Where the pictures of each output shard lie, in their order there."""
    plan = read_plan(root / ".shards.part/.plan")
    assert plan is not None
    tables = (plan.rows(number).to_pydict() for number in range(plan.num_shards))
    return [
        [(root / f"raw/{tar:05d}.tar", offset, size) for tar, offset, size in zip(*map(rows.get, WHERE), strict=True)]
        for rows in tables
    ]


def make_inputs(world: World, root: Path) -> int:
    """data/raw with pictures at size, and what the filter and the gate say of them; the pictures' bytes in all."""
    raw, filtered = root / "raw", root / "filtered"
    for folder in (raw, filtered):
        folder.mkdir(parents=True)
    pictures = [resize(data, CONFIG.image_px, QUALITY) for data in world.raw_images()]
    decisions, images, num_bytes = [], [], 0
    for number in range(2):
        with RawShardWriter(raw, f"{number:05d}", 4, keep_tar=lambda path, sha256: None) as writer:
            for index in range(NUM_PICTURES // 2):
                position = number * NUM_PICTURES // 2 + index
                # A comment makes each a picture of its own, however often its pixels come again.
                data = with_comment(pictures[position % len(pictures)], position)
                image_id, key = hashlib.sha256(data).hexdigest(), writer.next_key
                row = {
                    "key": key,
                    "url": f"http://x/{key}",
                    "caption": f"picture number {position}",
                    "status": "success",
                }
                writer.add(row | {"sha256": image_id, "image_key": key, "error_message": None}, data)
                num_bytes += len(data)
                decisions.append(row | {"keep": True, "image_id": image_id, "image_key": key, "text": row["caption"]})
                images.append({"image_id": image_id, "image_key": key, "phash": small_data.far_apart(position)})
    write_raw_manifest(raw, ["00000", "00001"])
    small_data.write_decisions(filtered, decisions)
    small_data.write_images(filtered, images)
    return num_bytes


def with_comment(jpeg: bytes, number: int) -> bytes:
    """The JPEG with a number in a comment segment."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + jpeg[2:]
