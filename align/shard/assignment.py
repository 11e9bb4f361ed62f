"""The assignment: which kept image goes to which output shard, with which rank and texts. Made once, read by shard.

A plan is a folder. For each output shard an Arrow file (mapped into memory) holds its rows of the decisions, so a
machine that makes a shard needs this file and no other. Output shards are numbered through all splits: first those of
train, then val, then test.

Planning needs about two gigabytes at most, however many pairs there are: rows that meet (of one image, one cluster, one
output shard) are brought together in buckets (`align.shard.buckets`), which few pairs do not even fill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
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
from align.formats.filtered import DECISIONS, IMAGES, decision_parts
from align.formats.shards import SPLITS, SplitName
from align.shard.buckets import Buckets, in_order, num_buckets
from align.shard.clusters import Clusters, Members, text_digests
from align.shard.image_spans import SPAN, look_up, sample_digests

#: Most rows of a batch; bounds the memory that texts take.
_ROWS_AT_ONCE = 1 << 17
#: Kept pairs that are read together, and those of output shards that are written together, more or less.
_PAIRS_AT_ONCE = 1 << 20
#: The columns of a plan that say where an image is.
_PLACE = {name: SPAN[name] for name in ("tar", "offset", "size")}
#: An image is identified by the first 128 bits of its sha256.
_ID = np.dtype("S16")
#: Hex digit -> its value.
_NIBBLES = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)

Ids = NDArray[np.bytes_]


def kept_batches(filtered: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The kept rows of the decisions, batch by batch."""
    for part in decision_parts(filtered):
        for batch in _batches(part, [*columns, "keep"]):
            kept = batch.filter(batch["keep"]).select(columns)
            if len(kept):
                yield kept


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Reads without read-ahead, which would keep all column chunks and so the whole file in memory."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield from file.iter_batches(_ROWS_AT_ONCE, columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptError(
            f"{path}: damaged ({reason}); get it back with `dvc checkout`, or run `align filter`"
        ) from None


def _ids(column: pa.Array, size: int = 16) -> Ids:
    """Hex sha256s -> their first bytes."""
    digits = pc.binary_slice(column.cast(pa.binary()), 0, 2 * size).cast(pa.binary(2 * size))
    chars = np.frombuffer(digits.buffers()[1], np.uint8)[2 * size * digits.offset :][: 2 * size * len(digits)]
    nibbles = _NIBBLES[chars].reshape(-1, 2)
    return (nibbles[:, 0] << 4 | nibbles[:, 1]).view(f"S{size}")


def _bucket(digests: NDArray[np.bytes_], count: int) -> NDArray[np.integer[Any]]:
    """A bucket of each digest, in their order."""
    numbers = np.ascontiguousarray(digests).view(">u8").reshape(-1, digests.dtype.itemsize // 8)
    return in_order(numbers[:, 0].astype(np.uint64), count)


_COLUMNS = ["key", "image_id", "image_key", "text"]


@dataclass(frozen=True)
class ShardPlan:
    """A finished plan.

    Attributes:
        folder: its files.
        num_images: per split, in the order of SPLITS.
        cluster_sizes: how many clusters have 1 image, 2 or 3, 4 to 7, and so on.
        largest_cluster: its number of images.
        images_per_shard: of each shard but the last of a split.
    """

    folder: Path
    num_images: tuple[int, int, int]
    cluster_sizes: Sequence[int]
    largest_cluster: int
    images_per_shard: int

    @property
    def num_shards(self) -> int:
        """How many output shards there are."""
        return sum(self._num_shards)

    def path(self, number: int) -> str:
        """The path of an output shard, such as `train/00000.tar`."""
        for name, count in zip(SPLITS, self._num_shards, strict=True):
            if number < count:
                return f"{name}/{number:05d}.tar"
            number -= count
        raise IndexError(number)

    def rows(self, number: int) -> pa.Table:
        """The kept pairs of an output shard, ordered by the rank of their image, then by key.

        Columns: key, image_id, image_key, text, rank (of the image in the shard), and tar, offset, size of the image.
        """
        with pa.memory_map(str(self.folder / rows_file(number))) as source:
            return pa.ipc.open_file(source).read_all()

    @property
    def _num_shards(self) -> list[int]:
        return [-(-count // self.images_per_shard) for count in self.num_images]


def rows_file(number: int) -> str:
    """The name of the file in a plan that has the rows of an output shard."""
    return f"{number:05d}.arrow"


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
        DataError: nothing is kept, a split would be empty, or an image of a kept pair has no hash or no bytes. Else as
            `kept_batches`.
    """
    with replace_directory(folder, "shard") as part:
        work = part / "buckets"
        work.mkdir()
        count = num_buckets(sum(pq.read_metadata(part).num_rows for part in decision_parts(filtered)))
        samples = Buckets(work, "samples", {"sample": SPAN["sample"], "row": "i8"}, count)
        rows = Buckets(work, "rows", {"row": "i8", "image": "i8"}, count)
        clusters, num_pairs = _read_clusters(filtered, config, work, samples, rows)
        assigned = Buckets(work, "assigned", {"image": "i8", "shard": "i4", "rank": "i4"}, count)
        plan = _assign(folder, clusters, config, work, assigned)
        num_blocks = -(-num_pairs // _PAIRS_AT_ONCE)
        shard_of = Buckets(work, "shard_of", {"row": "i8", "shard": "i4", "rank": "i4"}, num_blocks)
        for bucket in range(count):
            pairs, images = rows.take(bucket), assigned.take(bucket)
            if not len(images):
                continue
            images = images[np.argsort(images["image"])]
            numbers = clusters.start(bucket) + pairs["image"]
            found = images[np.searchsorted(images["image"], numbers)]
            shard_of.add(pairs["row"] // _PAIRS_AT_ONCE, row=pairs["row"], shard=found["shard"], rank=found["rank"])
        span_of = Buckets(work, "span_of", {"row": "i8", **_PLACE}, num_blocks)
        _find_spans(spans, work, samples, span_of)
        blocks = _blocks(filtered)
        _group_rows(part, blocks, raw, shard_of, span_of, plan)
        _write_rows(part, num_blocks)
        shutil.rmtree(work)
        write_text(part / "plan.json", to_json({k: v for k, v in asdict(plan).items() if k != "folder"}))
    return plan


def _read_clusters(
    filtered: Path, config: ShardConfig, work: Path, samples: Buckets, rows: Buckets
) -> tuple[Clusters, int]:
    """The kept images in order of their ids, and the number of kept pairs.

    Fills for each kept pair, which its position in the file numbers, the key of its image (in `samples`) and the index
    of its image in the bucket of the latter. Draw and place of an image depend only on the seed and the image, so that
    later images do not move earlier ones.
    """
    seed, count = config.seed, rows.count
    pairs = Buckets(work, "pairs", {"id": "S16", "row": "i8", "text": "u8"}, count)
    num_pairs = 0
    for batch in kept_batches(filtered, ["image_id", "image_key", "text"]):
        ids, numbers = _ids(batch["image_id"]), num_pairs + np.arange(len(batch))
        text = text_digests(batch["text"].to_pylist())
        pairs.add(_bucket(ids, count), id=ids, row=numbers, text=text)
        digests = sample_digests(key or "" for key in batch["image_key"].to_pylist())
        samples.add(_bucket(digests, count), sample=digests, row=numbers)
        num_pairs += len(batch)
    if num_pairs == 0:
        path = filtered / DECISIONS
        raise DataError(f"{path}: no pair is kept; see the filter's report for the reasons, and relax its rules")
    images = Buckets(work, "images", {"id": "S32", "phash": "u8"}, count)
    for batch in _batches(filtered / IMAGES, ["image_id", "phash"]):
        known = batch.filter(batch["phash"].is_valid())
        ids = _ids(known["image_id"], 32)
        images.add(_bucket(ids, count), id=ids, phash=known["phash"].to_numpy())
    clusters = Clusters(work, count, {"place": "u8", "place_2": "u8", "draw": "f8"})
    for bucket in range(count):
        mine, known = pairs.take(bucket), images.take(bucket)
        ids, index = np.unique(mine["id"], return_inverse=True)
        listed = known["id"].astype(_ID)
        row = np.searchsorted(listed, ids, sorter=(order := np.argsort(listed, kind="stable")))
        row = order[np.minimum(row, len(order) - 1)] if len(order) else np.zeros(0, np.int64)
        is_known = listed[row] == ids if len(order) else np.zeros(len(ids), bool)
        if not is_known.all():
            first = bytes(ids[int(np.argmin(is_known))]).ljust(16, b"\0").hex()
            path = filtered / IMAGES
            raise DataError(f"{path}: no hash of image {first}..., which is kept; run `align filter` again")
        texts = [one.hex() for one in known["id"][row].view("V32").tolist()]
        # "place" and "split" only make the two hashes differ; another word would shuffle all data again
        places = b"".join(hashlib.sha256(f"{seed} place {text}".encode()).digest()[:16] for text in texts)
        draws = b"".join(hashlib.sha256(f"{seed} split {text}".encode()).digest()[:8] for text in texts)
        place = np.frombuffer(places, ">u8").reshape(-1, 2)
        draw = np.frombuffer(draws, ">u8").astype(np.float64) / 2.0**64
        facts = {"place": place[:, 0], "place_2": place[:, 1], "draw": draw}
        clusters.add(index, mine["text"], known["phash"][row], facts)
        rows.add(bucket, row=mine["row"], image=index)
    return clusters, num_pairs


def _assign(folder: Path, clusters: Clusters, config: ShardConfig, work: Path, assigned: Buckets) -> ShardPlan:
    """Gives each image its split, its output shard and its rank there, split after split in order of their places."""
    count = assigned.count
    placed = Buckets(work, "placed", {"place": "u8", "place_2": "u8", "image": "i8"}, count * len(SPLITS))
    num_all, num_images = clusters.start(count), np.zeros(len(SPLITS), np.int64)
    cluster_sizes, largest = np.zeros(64, np.int64), 0
    for members in clusters.members(config.near_duplicate_bits):
        splits = _splits(members, num_all, config)
        first = members.images == members.labels
        cluster_sizes += np.bincount(np.log2(members.sizes[first]).astype(np.int64), minlength=64)
        largest = max(largest, int(members.sizes.max(initial=0)))
        num_images += np.bincount(splits, minlength=len(SPLITS))
        place, place_2 = members.facts["place"], members.facts["place_2"]
        placed.add(splits * count + in_order(place, count), place=place, place_2=place_2, image=members.images)
    fractions: dict[SplitName, float] = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    for (name, fraction), found in zip(fractions.items(), num_images.tolist(), strict=True):
        if fraction > 0 and not found:
            raise DataError(
                f"split '{name}' would be empty: {num_all} images in {cluster_sizes.sum()} clusters are too few for a "
                f"fraction of {fraction:g}; keep more pairs, or raise shard.{name}_fraction (0 leaves val or test out)"
            )
    first, second, third = num_images.tolist()
    shard = 0
    for split in range(len(SPLITS)):
        position = 0
        for bucket in range(count):
            images = placed.take(split * count + bucket)
            images = images[np.lexsort((images["place_2"], images["place"]))]["image"]
            at = position + np.arange(len(images))
            where = clusters.bucket_of(images)
            assigned.add(
                where, image=images, shard=shard + at // config.images_per_shard, rank=at % config.images_per_shard
            )
            position += len(images)
        shard += -(-position // config.images_per_shard)
    sizes = np.trim_zeros(cluster_sizes, "b").tolist()
    return ShardPlan(folder, (first, second, third), sizes, largest, config.images_per_shard)


def _splits(members: Members, num_images: int, config: ShardConfig) -> NDArray[np.int64]:
    """Of each image its split as an index of SPLITS.

    A cluster's split depends only on the draw of its smallest image (unless it is too large to be held out).
    """
    held_out = members.sizes <= max(config.max_cluster_share * num_images, 1)
    drawn = members.facts_of_label["draw"]
    splits = np.zeros(len(drawn), np.int64)
    splits[held_out & (drawn < config.val_fraction + config.test_fraction)] = SPLITS.index("test")
    splits[held_out & (drawn < config.val_fraction)] = SPLITS.index("val")
    return splits


def _find_spans(spans: Iterable[NDArray[Any]], work: Path, samples: Buckets, span_of: Buckets) -> None:
    """Fills where the image of each kept pair is, for those that have one."""
    listed = Buckets(work, "spans", SPAN, samples.count)
    for some in spans:
        listed.add(_bucket(some["sample"], samples.count), **{name: some[name] for name in SPAN})
    for bucket in range(samples.count):
        wanted = samples.take(bucket)
        found, exists = look_up(listed.take(bucket), wanted["sample"])
        row, found = wanted["row"][exists], found[exists]
        span_of.add(row // _PAIRS_AT_ONCE, row=row, **{name: found[name] for name in _PLACE})


def _group_rows(
    folder: Path, blocks: Iterable[pa.Table], raw: Path, shard_of: Buckets, span_of: Buckets, plan: ShardPlan
) -> None:
    """Writes the rows of neighbouring output shards to one file each.

    Raises:
        DataError: an image of a kept pair is in no raw tar.
    """
    num_groups = shard_of.count
    for block, table in enumerate(blocks):
        shards, spans = shard_of.take(block), span_of.take(block)
        if len(spans) < len(table):
            has = np.zeros(len(table), bool)
            has[spans["row"] % _PAIRS_AT_ONCE] = True
            lost = table.filter(pa.array(~has))
            what = f"{len(lost['image_id'].unique())} images of kept pairs are missing"
            raise DataError(
                f"{raw}: {what}, the first is {pc.min(lost['image_key'])}; run `align ingest` and `align filter` again"
            )
        table = table.take(pa.array(np.sort(shards["row"]) % _PAIRS_AT_ONCE))  # without those that no shard has
        spans = spans[np.isin(spans["row"], shards["row"])]
        for rows, names in ((shards, ("rank", "shard")), (spans, _PLACE)):
            in_file = rows[np.argsort(rows["row"])]
            for name in names:
                table = table.append_column(name, pa.array(np.ascontiguousarray(in_file[name])))
        shard = table["shard"].to_numpy()
        table = table.take(pa.array(np.argsort(shard, kind="stable")))
        if not len(table):
            continue
        for group, rows in _slices(table, table["shard"].to_numpy().astype(np.int64) * num_groups // plan.num_shards):
            with (folder / f"group-{group}").open("ab") as file, pa.ipc.new_stream(file, rows.schema) as writer:
                writer.write_table(rows)


def _write_rows(folder: Path, num_groups: int) -> None:
    """Divides these files: writes the rows of each output shard."""
    for group in range(num_groups):
        path = folder / f"group-{group}"
        if path.exists():  # there may be fewer shards than groups
            table = _read_streams(path).sort_by([(name, "ascending") for name in ("shard", "rank", "key")])
            for shard, rows in _slices(table, table["shard"].to_numpy()):
                rows = rows.drop_columns(["shard"])
                path_of_rows = str(folder / rows_file(shard))
                with pa.OSFile(path_of_rows, "wb") as sink, pa.ipc.new_file(sink, rows.schema) as out:
                    out.write_table(rows)
            path.unlink()


def _blocks(filtered: Path) -> Iterator[pa.Table]:
    """The kept rows, as many at a time as `Buckets` by row numbers have."""
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in kept_batches(filtered, _COLUMNS):
        while num_waiting + len(batch) >= _PAIRS_AT_ONCE:
            cut = _PAIRS_AT_ONCE - num_waiting
            yield pa.Table.from_batches([*waiting, batch.slice(0, cut)])
            batch, waiting, num_waiting = batch.slice(cut), [], 0
        waiting.append(batch)
        num_waiting += len(batch)
    if num_waiting:
        yield pa.Table.from_batches(waiting)


def _slices(table: pa.Table, numbers: NDArray[np.integer[Any]]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each number; numbers ascend."""
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
        yield int(numbers[start]), table.slice(start, end - start)


def _read_streams(path: Path) -> pa.Table:
    tables = []
    with pa.memory_map(str(path)) as source:
        while source.tell() < source.size():
            tables.append(pa.ipc.open_stream(source).read_all())
    return pa.concat_tables(tables)
