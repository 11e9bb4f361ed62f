"""Which kept image goes into which output shard, at what place, with which texts: planned once, read shard by shard.

A plan is a folder. Each of its `runs` (Arrow files, mapped into memory) holds some rows of decisions.parquet, sorted by
output shard and rank, so that a shard's rows are one slice of each run. Output shards are numbered over all splits:
those of train first, then val, then test.

Memory while planning, at its peak: some 140 bytes a kept pair, or 120 a kept image and 60 a raw image, whichever is
more (numpy arrays; texts pass by in batches). Of 50 million pairs of which half are kept: 4 GB.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.shard import ShardConfig
from align.errors import DataError
from align.files import replace_directory, to_json, write_text
from align.formats.shards import SPLITS, SplitName
from align.shard.clusters import cluster, text_digests

#: Rows of a run: bounds the memory that texts take.
_ROWS = 1 << 17
_COLUMNS = ["key", "image_id", "image_key", "text"]
#: An image is known by the first 128 bits of its sha256, a tar sample by as many of a digest of its key.
_ID = np.dtype("S16")
#: Hex digit -> its value.
_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

#: Where a tar sample's image lies: digest of the key, number of the raw tar, offset and bytes in it.
PLACE = np.dtype([("sample", _ID), ("tar", np.int32), ("offset", np.int64), ("size", np.int64)])

Ids = NDArray[np.bytes_]


@dataclass(frozen=True)
class Plan:
    """A plan that was made.

    Attributes:
        folder: where its files are.
        num_images: per split, in the order of SPLITS.
        num_clusters, largest_cluster: of all images.
        images_per_shard: in each shard but the last of a split.
    """

    folder: Path
    num_images: tuple[int, int, int]
    num_clusters: int
    largest_cluster: int
    images_per_shard: int

    @property
    def paths(self) -> list[str]:
        """Of the output shards in order of their numbers, such as `train/00000.tar`."""
        return [
            f"{name}/{index:05d}.tar"
            for name, count in zip(SPLITS, _num_shards(self.num_images, self.images_per_shard), strict=True)
            for index in range(count)
        ]

    def rows(self, number: int) -> pa.Table:
        """The kept pairs of an output shard, image by image in their order, an image's pairs in order of their keys.

        Columns: key, image_id, image_key, text, rank (of the image in the shard), and tar, offset, size of its bytes.
        """
        starts = np.load(self.folder / "starts.npy", mmap_mode="r")
        slices = []
        for run, (begin, end) in enumerate(starts[:, number : number + 2].tolist()):
            if begin < end:
                with pa.memory_map(str(self.folder / f"{run:05d}.arrow")) as source:
                    slices.append(pa.ipc.open_file(source).get_batch(0).slice(begin, end - begin))
        return pa.Table.from_batches(slices).sort_by([("rank", "ascending"), ("key", "ascending")])


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder; None where none was made."""
    try:
        values = json.loads((folder / "plan.json").read_bytes())
    except FileNotFoundError:
        return None
    return Plan(folder, tuple(values.pop("num_images")), **values)


def make_plan(folder: Path, filtered: Path, places: Iterable[NDArray[Any]], raw: Path, config: ShardConfig) -> Plan:
    """Plans, and writes the folder; it appears complete or not at all.

    Args:
        folder: of the plan.
        filtered: data/filtered.
        places: per raw tar, its images as PLACE.
        raw: for messages.
        config: section `shard`.

    Raises:
        DataError: nothing is kept, a split would be empty, or an image of a kept pair has no hash or no bytes.
    """
    ids, pair_images, pair_texts = _read_kept(filtered)
    phashes, order_keys, draws = _read_images(filtered, ids, config.seed)
    labels = cluster(len(ids), pair_images, pair_texts, phashes, config.near_duplicate_bits)
    del pair_texts, phashes
    splits, num_clusters, largest = _split(labels, draws, config)
    num_images = tuple(np.bincount(splits, minlength=len(SPLITS)).tolist())
    order = np.lexsort((order_keys[:, 1], order_keys[:, 0], splits))
    del labels, draws, order_keys
    plan = Plan(folder, num_images, num_clusters, largest, config.images_per_shard)
    shard, rank = _number(order, plan)
    del order, splits, ids
    with replace_directory(folder) as part:
        _write_runs(part, filtered, pair_images, shard, rank, _Places(places), raw, len(plan.paths))
        write_text(part / "plan.json", to_json({k: v for k, v in asdict(plan).items() if k != "folder"}))
    return plan


def place_rows(samples: Iterable[tuple[str, int, int]], tar: int) -> NDArray[Any]:
    """(tar sample key, offset, bytes) of the images of one raw tar -> PLACE."""
    rows = [(_digest(key), tar, offset, size) for key, offset, size in samples]
    return np.array(rows, PLACE)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()


def _ids(column: pa.Array) -> Ids:
    """Hex sha256s -> their first 16 bytes."""
    digits = pc.binary_slice(column.cast(pa.binary()), 0, 32).cast(pa.binary(32))
    chars = np.frombuffer(digits.buffers()[1], np.uint8)[32 * digits.offset :][: 32 * len(digits)]
    nibbles = _NIBBLES[chars].reshape(-1, 2)
    return (nibbles[:, 0] << 4 | nibbles[:, 1]).view(_ID)


def _kept_batches(filtered: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The kept rows of decisions.parquet, batch by batch."""
    path = filtered / "decisions.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `align filter` first")
    with _open(path) as file:
        for batch in file.iter_batches(_ROWS, columns=[*columns, "keep"]):
            kept = batch.filter(batch["keep"]).select(columns)
            if len(kept):
                yield kept


def _open(path: Path) -> pq.ParquetFile:
    """By default it would keep the column chunks that it has read ahead, in the end all of the file."""
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)


def _read_kept(filtered: Path) -> tuple[Ids, NDArray[np.int32], NDArray[np.uint64]]:
    """Ids of the distinct images in order, then image and text digest of each kept pair in the order of the file."""
    ids, texts = [np.empty(0, _ID)], [np.empty(0, np.uint64)]
    for batch in _kept_batches(filtered, ["image_id", "text"]):
        ids.append(_ids(batch["image_id"]))
        texts.append(text_digests(batch["text"].to_pylist()))
    found, pair_images = np.unique(np.concatenate(ids), return_inverse=True)
    if len(found) == 0:
        where = filtered / "decisions.parquet"
        raise DataError(f"{where}: no pair is kept; see the filter's report for the reasons, and relax its rules")
    return found, pair_images.astype(np.int32), np.concatenate(texts)


def _read_images(
    filtered: Path, ids: Ids, seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.float64]]:
    """Per image: perceptual hash, 128 bits that order the shuffle, and the draw in [0, 1) that chooses a split.

    All but the hash depend on the seed and the image alone, so that images that arrive later do not move one.
    """
    path = filtered / "images.parquet"
    if not path.is_file():
        raise DataError(f"{path}: no such file; run `align filter` first")
    phashes, known = np.zeros(len(ids), np.uint64), np.zeros(len(ids), bool)
    order_keys, draws = np.zeros((len(ids), 2), np.uint64), np.zeros(len(ids))
    with _open(path) as file:
        for batch in file.iter_batches(_ROWS, columns=["image_id", "phash"]):
            kept = batch.filter(batch["phash"].is_valid())
            wanted = _ids(kept["image_id"])
            index = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
            ours = np.flatnonzero(ids[index] == wanted)
            index = index[ours]
            hexes = kept["image_id"].take(pa.array(ours)).to_pylist()
            phashes[index], known[index] = kept["phash"].to_numpy()[ours], True
            hashed = b"".join(hashlib.sha256(f"{seed} place {text}".encode()).digest()[:16] for text in hexes)
            order_keys[index] = np.frombuffer(hashed, ">u8").reshape(-1, 2)
            hashed = b"".join(hashlib.sha256(f"{seed} split {text}".encode()).digest()[:8] for text in hexes)
            draws[index] = np.frombuffer(hashed, ">u8").astype(np.float64) / 2.0**64
    if not known.all():
        first = bytes(ids[int(np.argmin(known))]).ljust(16, b"\0").hex()
        raise DataError(f"{path}: no hash of image {first}..., which is kept; run `align filter` again")
    return phashes, order_keys, draws


def _split(
    labels: NDArray[np.int64], draws: NDArray[np.float64], config: ShardConfig
) -> tuple[NDArray[np.int8], int, int]:
    """Per image the split's place in SPLITS; the number of clusters, and the images of the largest.

    A cluster's split depends on the draw of its smallest image alone (unless it is too large to be held out).
    """
    sizes = np.bincount(labels, minlength=len(labels))
    held_out = sizes[labels] <= max(config.max_cluster_share * len(labels), 1)
    drawn = draws[labels]
    splits = np.zeros(len(labels), np.int8)
    splits[held_out & (drawn < config.val_fraction + config.test_fraction)] = SPLITS.index("test")
    splits[held_out & (drawn < config.val_fraction)] = SPLITS.index("val")
    num_clusters = int(np.count_nonzero(sizes))
    wanted: dict[SplitName, float] = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    for name, fraction in wanted.items():
        if fraction > 0 and not np.any(splits == SPLITS.index(name)):
            raise DataError(
                f"split '{name}' would be empty: {len(labels)} images in {num_clusters} clusters are too few for a "
                f"fraction of {fraction:g}; keep more pairs, or raise shard.{name}_fraction (0 leaves val or test out)"
            )
    return splits, num_clusters, int(sizes.max())


def _num_shards(num_images: Iterable[int], images_per_shard: int) -> list[int]:
    return [-(-count // images_per_shard) for count in num_images]


def _number(order: NDArray[np.int64], plan: Plan) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Per image its output shard and its rank in it, for images in the order of the list, split after split."""
    shard, rank = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    start = first_shard = 0
    for count, num_shards in zip(plan.num_images, _num_shards(plan.num_images, plan.images_per_shard), strict=True):
        position = np.arange(count)
        shard[order[start : start + count]] = first_shard + position // plan.images_per_shard
        rank[order[start : start + count]] = position % plan.images_per_shard
        start, first_shard = start + count, first_shard + num_shards
    return shard, rank


class _Places:
    """Where the image of a tar sample lies, for all raw tars at once."""

    def __init__(self, places: Iterable[NDArray[Any]]) -> None:
        rows = np.concatenate([np.empty(0, PLACE), *places])
        order = np.argsort(rows["sample"], kind="stable")
        self._samples = rows["sample"][order]
        self._rows, self._order = rows, order

    def find(self, keys: list[str]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """PLACE of each sample key, and whether there is such a sample."""
        wanted = np.frombuffer(b"".join(map(_digest, keys)), _ID)
        if len(self._samples) == 0:
            return np.zeros(len(keys), PLACE), np.zeros(len(keys), bool)
        index = np.minimum(np.searchsorted(self._samples, wanted), len(self._samples) - 1)
        return self._rows[self._order[index]], self._samples[index] == wanted


def _write_runs(
    folder: Path, filtered: Path, pair_images: NDArray[np.int32], shard: NDArray[np.int32], rank: NDArray[np.int32],
    places: _Places, raw: Path, num_shards: int,
) -> None:  # fmt: skip
    missing = np.zeros(len(shard), bool)
    first_missing: str | None = None
    starts, row = [], 0
    for run, batch in enumerate(_kept_batches(filtered, _COLUMNS)):
        images = pair_images[row : row + len(batch)]
        row += len(batch)
        keys = batch["image_key"].to_pylist()
        place, found = places.find(["" if key is None else key for key in keys])
        if not found.all():
            missing[images[~found]] = True
            lost = min(str(keys[index]) for index in np.flatnonzero(~found))
            first_missing = lost if first_missing is None else min(first_missing, lost)
        order = np.lexsort((rank[images], shard[images]))
        columns = {name: batch[name] for name in _COLUMNS} | {"rank": pa.array(rank[images])}
        columns |= {name: pa.array(np.ascontiguousarray(place[name])) for name in ("tar", "offset", "size")}
        table = pa.RecordBatch.from_pydict(columns).take(pa.array(order))
        with pa.OSFile(str(folder / f"{run:05d}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_batch(table)
        starts.append(np.searchsorted(shard[images][order], np.arange(num_shards + 1)))
    if first_missing is not None:
        what = f"{np.count_nonzero(missing)} images of kept pairs are missing, the first is {first_missing}"
        raise DataError(f"{raw}: {what}; run `align ingest` and `align filter` again")
    np.save(folder / "starts.npy", np.array(starts, np.int64))
