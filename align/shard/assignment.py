"""The assignment: which kept image goes to which output shard, with which rank and texts. Made once, read by shard.

A plan is a folder. Each of its `runs` (Arrow files, mapped into memory) holds some rows of decisions.parquet, sorted by
output shard and rank, so that a shard's rows are one slice of each run. Output shards are numbered through all splits:
first those of train, then val, then test.

Peak memory while planning is the larger of 140 bytes per kept pair, and 120 bytes per kept image plus 60 per raw image
(numpy arrays; texts are read in batches). For 50 million pairs, half of them kept, that is 4 GB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.shard import ShardConfig
from align.durable.files import replace_directory, to_json, write_text
from align.errors import CorruptError, DataError
from align.formats.filtered import DECISIONS, IMAGES
from align.formats.shards import SPLITS, SplitName
from align.pairs.clusters import cluster, text_digests
from align.shard.image_spans import ImageSpans

#: Most rows of a batch; bounds the memory that texts take.
_ROWS = 1 << 17
#: An image is identified by the first 128 bits of its sha256.
_ID = np.dtype("S16")
#: Hex digit -> its value.
_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

Ids = NDArray[np.bytes_]


def read_kept(filtered: Path) -> tuple[Ids, NDArray[np.int32], NDArray[np.uint64]]:
    """Sorted ids of the distinct images; then index of the image, and text digest, of each kept pair in file order."""
    ids, texts = [np.empty(0, _ID)], [np.empty(0, np.uint64)]
    for batch in kept_batches(filtered, ["image_id", "text"]):
        ids.append(_ids(batch["image_id"]))
        texts.append(text_digests(batch["text"].to_pylist()))
    distinct, pair_images = np.unique(np.concatenate(ids), return_inverse=True)
    if len(distinct) == 0:
        path = filtered / DECISIONS
        raise DataError(f"{path}: no pair is kept; see the filter's report for the reasons, and relax its rules")
    return distinct, pair_images.astype(np.int32), np.concatenate(texts)


def read_images(
    filtered: Path, ids: Ids, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]:
    """Per image: perceptual hash, 128 bits that order the shuffle, and a number in [0, 1) that chooses the split.

    All but the hash depend only on the seed and the image, so that later images do not move earlier ones.
    """
    path = filtered / IMAGES
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `align filter` first")
    phashes, known = np.zeros(len(ids), np.uint64), np.zeros(len(ids), bool)
    order_keys, draws = np.zeros((len(ids), 2), np.uint64), np.zeros(len(ids))
    with _open(path) as file:
        for batch in file.iter_batches(_ROWS, columns=["image_id", "phash"]):
            kept = batch.filter(batch["phash"].is_valid())
            listed = _ids(kept["image_id"])
            index = np.minimum(np.searchsorted(ids, listed), len(ids) - 1)
            ours = np.flatnonzero(ids[index] == listed)
            index = index[ours]
            hexes = kept["image_id"].take(pa.array(ours)).to_pylist()
            phashes[index], known[index] = kept["phash"].to_numpy()[ours], True
            # "place" and "split" only make the two hashes differ; another word would shuffle all data again
            hashed = b"".join(hashlib.sha256(f"{seed} place {text}".encode()).digest()[:16] for text in hexes)
            order_keys[index] = np.frombuffer(hashed, ">u8").reshape(-1, 2)
            hashed = b"".join(hashlib.sha256(f"{seed} split {text}".encode()).digest()[:8] for text in hexes)
            draws[index] = np.frombuffer(hashed, ">u8").astype(np.float64) / 2.0**64
    if not known.all():
        first = bytes(ids[int(np.argmin(known))]).ljust(16, b"\0").hex()
        raise DataError(f"{path}: no hash of image {first}..., which is kept; run `align filter` again")
    return phashes, order_keys, draws


def kept_batches(filtered: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The kept rows of decisions.parquet, batch by batch."""
    path = filtered / DECISIONS
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `align filter` first")
    with _open(path) as file:
        for batch in file.iter_batches(_ROWS, columns=[*columns, "keep"]):
            kept = batch.filter(batch["keep"]).select(columns)
            if len(kept):
                yield kept


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens without read-ahead, which would keep all column chunks and so the whole file in memory."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptError(
            f"{path}: damaged ({reason}); get it back with `dvc checkout`, or run `align filter`"
        ) from None


def _ids(column: pa.Array) -> Ids:
    """Hex sha256s -> their first 16 bytes."""
    digits = pc.binary_slice(column.cast(pa.binary()), 0, 32).cast(pa.binary(32))
    chars = np.frombuffer(digits.buffers()[1], np.uint8)[32 * digits.offset :][: 32 * len(digits)]
    nibbles = _NIBBLES[chars].reshape(-1, 2)
    return (nibbles[:, 0] << 4 | nibbles[:, 1]).view(_ID)


_COLUMNS = ["key", "image_id", "image_key", "text"]


@dataclass(frozen=True)
class ShardPlan:
    """A finished plan.

    Attributes:
        folder: its files.
        num_images: per split, in the order of SPLITS.
        num_clusters: over all splits.
        largest_cluster: its number of images.
        images_per_shard: of each shard but the last of a split.
    """

    folder: Path
    num_images: tuple[int, int, int]
    num_clusters: int
    largest_cluster: int
    images_per_shard: int

    @property
    def paths(self) -> list[str]:
        """Paths of the output shards in order of their numbers, such as `train/00000.tar`."""
        return [
            f"{name}/{index:05d}.tar"
            for name, count in zip(SPLITS, _num_shards(self.num_images, self.images_per_shard), strict=True)
            for index in range(count)
        ]

    def rows(self, number: int) -> pa.Table:
        """The kept pairs of an output shard, ordered by the rank of their image, then by key.

        Columns: key, image_id, image_key, text, rank (of the image in the shard), and tar, offset, size of the image.
        """
        starts = np.load(self.folder / "starts.npy", mmap_mode="r")
        slices = []
        for run, (begin, end) in enumerate(starts[:, number : number + 2].tolist()):
            if begin < end:
                with pa.memory_map(str(self.folder / f"{run:05d}.arrow")) as source:
                    slices.append(pa.ipc.open_file(source).get_batch(0).slice(begin, end - begin))
        return pa.Table.from_batches(slices).sort_by([("rank", "ascending"), ("key", "ascending")])


def read_plan(folder: Path) -> ShardPlan | None:
    """The plan of a folder; None if there is none."""
    try:
        values = json.loads((folder / "plan.json").read_bytes())
    except FileNotFoundError:
        return None
    return ShardPlan(folder, tuple(values.pop("num_images")), **values)


def make_plan(folder: Path, filtered: Path, spans: Iterable[NDArray[Any]], raw: Path, config: ShardConfig) -> ShardPlan:
    """Plans, and writes the folder as a whole or not at all.

    Args:
        folder: of the plan.
        filtered: data/filtered.
        spans: per raw tar, its images as `align.shard.image_spans.SPAN`.
        raw: data/raw, for error messages.
        config: section `shard`.

    Raises:
        DataError: nothing is kept, a split would be empty, or an image of a kept pair has no hash or no bytes.
    """
    ids, pair_images, pair_texts = read_kept(filtered)
    phashes, order_keys, draws = read_images(filtered, ids, config.seed)
    labels = cluster(len(ids), pair_images, pair_texts, phashes, config.near_duplicate_bits)
    del pair_texts, phashes
    splits, num_clusters, largest = _split(labels, draws, config)
    num_images = tuple(np.bincount(splits, minlength=len(SPLITS)).tolist())
    order = np.lexsort((order_keys[:, 1], order_keys[:, 0], splits))
    del labels, draws, order_keys
    plan = ShardPlan(folder, num_images, num_clusters, largest, config.images_per_shard)
    assignment = _assign(order, plan)
    del order, splits, ids
    with replace_directory(folder, "shard") as part:
        _write_runs(part, filtered, raw, pair_images, assignment, ImageSpans(spans))
        write_text(part / "plan.json", to_json({k: v for k, v in asdict(plan).items() if k != "folder"}))
    return plan


def _split(
    labels: NDArray[np.int64], draws: NDArray[np.float64], config: ShardConfig
) -> tuple[NDArray[np.int8], int, int]:
    """Per image its split as an index of SPLITS; the number of clusters, and the number of images in the largest.

    A cluster's split depends only on the draw of its smallest image (unless it is too large to be held out).
    """
    sizes = np.bincount(labels, minlength=len(labels))
    held_out = sizes[labels] <= max(config.max_cluster_share * len(labels), 1)
    drawn = draws[labels]
    splits = np.zeros(len(labels), np.int8)
    splits[held_out & (drawn < config.val_fraction + config.test_fraction)] = SPLITS.index("test")
    splits[held_out & (drawn < config.val_fraction)] = SPLITS.index("val")
    num_clusters = int(np.count_nonzero(sizes))
    fractions: dict[SplitName, float] = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    for name, fraction in fractions.items():
        if fraction > 0 and not np.any(splits == SPLITS.index(name)):
            raise DataError(
                f"split '{name}' would be empty: {len(labels)} images in {num_clusters} clusters are too few for a "
                f"fraction of {fraction:g}; keep more pairs, or raise shard.{name}_fraction (0 leaves val or test out)"
            )
    return splits, num_clusters, int(sizes.max())


def _num_shards(num_images: Iterable[int], images_per_shard: int) -> list[int]:
    return [-(-count // images_per_shard) for count in num_images]


@dataclass(frozen=True)
class _Assignment:
    """Output shard and rank of each image.

    Attributes:
        shard: (N,) number of the image's output shard.
        rank: (N,) its rank in that shard.
        num_shards: over all splits.
    """

    shard: NDArray[np.int32]
    rank: NDArray[np.int32]
    num_shards: int


def _assign(order: NDArray[np.int64], plan: ShardPlan) -> _Assignment:
    """Assigns images in the given order, split after split."""
    shard, rank = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    start = first_shard = 0
    for count, num_shards in zip(plan.num_images, _num_shards(plan.num_images, plan.images_per_shard), strict=True):
        position = np.arange(count)
        shard[order[start : start + count]] = first_shard + position // plan.images_per_shard
        rank[order[start : start + count]] = position % plan.images_per_shard
        start, first_shard = start + count, first_shard + num_shards
    return _Assignment(shard, rank, first_shard)


def _write_runs(
    folder: Path,
    filtered: Path,
    raw: Path,
    pair_images: NDArray[np.int32],
    assignment: _Assignment,
    spans: ImageSpans,
) -> None:
    """Writes the runs, and where each output shard begins in each run.

    Raises:
        DataError: an image of a kept pair is in no raw tar.
    """
    missing = np.zeros(len(assignment.shard), bool)
    first_missing: str | None = None
    starts, row = [], 0
    for run, batch in enumerate(kept_batches(filtered, _COLUMNS)):
        images = pair_images[row : row + len(batch)]
        row += len(batch)
        keys = batch["image_key"].to_pylist()
        image_spans, exists = spans.look_up(["" if key is None else key for key in keys])
        if not exists.all():
            missing[images[~exists]] = True
            lost = min(str(keys[index]) for index in np.flatnonzero(~exists))
            first_missing = lost if first_missing is None else min(first_missing, lost)
        shard, rank = assignment.shard[images], assignment.rank[images]
        order = np.lexsort((rank, shard))
        columns = {name: batch[name] for name in _COLUMNS} | {"rank": pa.array(rank)}
        columns |= {name: pa.array(np.ascontiguousarray(image_spans[name])) for name in ("tar", "offset", "size")}
        table = pa.RecordBatch.from_pydict(columns).take(pa.array(order))
        with pa.OSFile(str(folder / f"{run:05d}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
        starts.append(np.searchsorted(shard[order], np.arange(assignment.num_shards + 1)))
    if first_missing is not None:
        what = f"{np.count_nonzero(missing)} images of kept pairs are missing, the first is {first_missing}"
        raise DataError(f"{raw}: {what}; run `align ingest` and `align filter` again")
    np.save(folder / "starts.npy", np.array(starts, np.int64))
