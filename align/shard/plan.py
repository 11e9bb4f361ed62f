"""The plan: which kept image goes to which output shard, at which position, with which texts. Made once, by SQL.

Tasks write tables of numbers and strings (`kept_pairs`, `image_hashes`). SQL finds clusters (`align.shard.clusters`),
gives each cluster its split and each image its position there, and sorts the kept pairs by both into one file. An
output shard is a range of positions, of which its task reads the row groups. Both engines make the same plan, since
all that they compare and sort are numbers.

Images are the first 64 bits of their sha256, as in the filter (`align.filter.tables`). Draw and place of an image
depend only on the seed and the image, so that later images do not move earlier ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.shard import ShardConfig
from align.display.console import say
from align.durable.files import write_text
from align.errors import CorruptError, DataError
from align.formats.filtered import DECISIONS, IMAGES
from align.formats.json_file import StoredModel
from align.formats.parquet import readable
from align.formats.shards import SPLITS, SplitName
from align.interfaces.sql import Engine
from align.shard.clusters import label_images, text_hashes

#: The files of a plan.
ROWS, PLAN = "rows.parquet", "plan.json"

_STRINGS = ("key", "image_id", "image_key", "text")
_KEPT_SCHEMA = pa.schema(
    [
        ("image", pa.int64()),  # in the order of the digests
        ("text_hash", pa.int64()),  # equal for texts that differ in case only
        ("place", pa.int64()),  # images are sorted by it: a shuffle
        ("draw", pa.float64()),  # in [0, 1); decides the split
        *((name, pa.string()) for name in _STRINGS),
        ("tar", pa.string()),  # the name of the raw tar with the image
        ("start", pa.int64()),  # of the image in the tar, in bytes
        ("num_bytes", pa.int64()),
    ]
)
_SHOWN = (*_STRINGS, "tar", "start", "num_bytes")
#: Turns the order of unsigned numbers into that of signed ones; Spark has no others.
_SIGN = np.uint64(1 << 63)


class ShardPlan(StoredModel):
    """A finished plan.

    Attributes:
        num_images: of each split.
        cluster_sizes: how many clusters have 1 image, 2 or 3, 4 to 7, and so on.
        largest_cluster: its number of images.
        images_per_shard: of each shard but the last of a split.
    """

    num_images: dict[SplitName, int]
    cluster_sizes: tuple[int, ...]
    largest_cluster: int
    images_per_shard: int

    @property
    def shards(self) -> list[tuple[SplitName, int]]:
        """The split of each output shard, and its number there."""
        return [
            (split, number)
            for split, count in self.num_images.items()
            for number in range(-(-count // self.images_per_shard))
        ]


def read_plan(folder: Path) -> ShardPlan:
    """The plan of a folder."""
    return ShardPlan.model_validate_json((folder / PLAN).read_bytes())


def read_rows(stream: BinaryIO, split: SplitName, number: int, images_per_shard: int) -> pa.Table:
    """The kept pairs of an output shard, ordered by the position of their image in the split, then by key.

    Columns: position, key, image_id, image_key, text, and where the image is: tar, start, num_bytes. Of the stream with
    ROWS, only row groups with such pairs are read.
    """
    ends = {"split": 2 * [SPLITS.index(split)]}
    ends["position"] = [number * images_per_shard, (number + 1) * images_per_shard - 1]
    with pq.ParquetFile(stream, pre_buffer=False) as file:
        groups = set(range(file.num_row_groups))
        for name, (low, high) in ends.items():
            column = file.schema_arrow.get_field_index(name)
            known = {group: file.metadata.row_group(group).column(column).statistics for group in groups}
            groups = {group for group, one in known.items() if not one or (one.min <= high and one.max >= low)}
        rows = file.read_row_groups(sorted(groups), use_threads=False)
    for name, (low, high) in ends.items():
        rows = rows.filter((pc.field(name) >= low) & (pc.field(name) <= high))
    return rows.sort_by([("position", "ascending"), ("key", "ascending")])


def kept_pairs(part: Path, tar: str, spans: Mapping[str, tuple[int, int]], seed: int) -> pa.Table:
    """The kept rows of a file of decisions, with what the SQL needs of them.

    Args:
        part: the file.
        tar: the name of the raw tar with its images.
        spans: of that tar: key of the sample -> first byte and number of bytes of its image.
        seed: of draws and places.

    Raises DataError if an image is not in the tar; CorruptError if the file is damaged.
    """
    with _readable(part):
        rows = pq.read_table(part, columns=list(_STRINGS), filters=pc.field("keep")).combine_chunks()
    keys = rows["image_key"].to_pylist()
    if lost := {key or "" for key in keys} - spans.keys():
        raise DataError(
            f"{part}: {len(lost)} images of kept pairs are missing, the first is {min(lost)}; run `align ingest` and "
            "`align filter` again"
        )
    ids = rows["image_id"].combine_chunks().dictionary_encode()
    distinct = ids.dictionary.to_pylist()
    with _readable(part):
        numbers = _signed(_numbers(distinct))
    # "place" and "split" only make the two hashes differ; another word would shuffle all data again
    places, draws = (
        _numbers([hashlib.sha256(f"{seed} {what} {one}".encode()).hexdigest() for one in distinct])
        for what in ("place", "split")
    )
    facts = {"image": numbers, "place": _signed(places), "draw": draws.astype(np.float64) / 2.0**64}
    columns = {name: pa.array(values).take(ids.indices) for name, values in facts.items()}
    columns |= {name: rows[name] for name in _STRINGS} | {"text_hash": text_hashes(rows["text"].to_pylist())}
    columns |= {"tar": [tar] * len(rows), "start": [spans[key][0] for key in keys]}
    columns |= {"num_bytes": [spans[key][1] for key in keys]}
    return pa.table([columns[name] for name in _KEPT_SCHEMA.names], schema=_KEPT_SCHEMA)


def num_row_groups(images: Path) -> int:
    """Of images.parquet, at least one: an engine reads at least one file. Raises CorruptError if it is damaged."""
    with _readable(images):
        return max(1, int(pq.read_metadata(images).num_row_groups))


def image_hashes(images: Path, row_group: int) -> pa.Table:
    """The perceptual hashes of a row group of images.parquet, none if it has no such group: image, phash. Raises
    CorruptError if the file is damaged.
    """
    with _readable(images), pq.ParquetFile(images, pre_buffer=False) as file:
        groups = range(file.num_row_groups)[row_group : row_group + 1]
        rows = file.read_row_groups(groups, ["image_id", "phash"])
        rows = rows.filter(rows["phash"].is_valid())
        numbers = _signed(_numbers(rows["image_id"].to_pylist()))
    return pa.table({"image": numbers, "phash": rows["phash"].to_numpy().view(np.int64)})


def _numbers(digests: Sequence[str]) -> NDArray[np.uint64]:
    """Hex digests -> their first 64 bits. Raises ValueError if one is not."""
    return np.frombuffer(bytes.fromhex("".join([one[:16] for one in digests])), ">u8").astype(np.uint64)


def _signed(numbers: NDArray[np.uint64]) -> NDArray[np.int64]:
    return (numbers ^ _SIGN).view(np.int64)


#: A file of data/filtered can be read, or is damaged.
_readable = partial(
    readable, problem="damaged", remedy="get it back with `dvc checkout`, or run `align filter`", kind=CorruptError
)


def make_plan(engine: Engine, filtered: Path, config: ShardConfig, folder: Path) -> None:
    """Plans, and writes ROWS and PLAN.

    Args:
        engine: has the views `kept`, of the tables of `kept_pairs`, and `hashes`, of those of `image_hashes`.
        filtered: data/filtered, for error messages.
        config: section `shard`.
        folder: of the plan.
    """
    say("shard: SQL, clusters of images")
    engine.table("images", _IMAGES)
    [(num_images, first)] = engine.rows("SELECT count(*), min(CASE WHEN phash IS NULL THEN image END) FROM images")
    if num_images == 0:
        path = filtered / DECISIONS
        raise DataError(f"{path}: no pair is kept; see the filter's report for the reasons, and relax its rules")
    if first is not None:
        digits, path = f"{first + int(_SIGN):016x}", filtered / IMAGES
        raise DataError(f"{path}: no hash of image {digits}..., which is kept; run `align filter` again")
    labels = label_images(engine, config.near_duplicate_bits)
    say("shard: SQL, splits and order")
    engine.table("labelled", _LABELLED.format(labels=labels))
    engine.table("clusters", _CLUSTERS)
    engine.table("placed", _PLACED.format(split=_split(config, num_images)))
    sizes = dict(engine.rows("SELECT num_images, count(*) FROM clusters GROUP BY num_images"))
    counts = dict(engine.rows("SELECT split, count(*) FROM placed GROUP BY split"))
    by_size = [0] * max(sizes).bit_length()
    for size, number in sizes.items():
        by_size[size.bit_length() - 1] += number
    plan = ShardPlan(
        num_images={name: counts.get(number, 0) for number, name in enumerate(SPLITS)},
        cluster_sizes=tuple(by_size),
        largest_cluster=max(sizes),
        images_per_shard=config.images_per_shard,
    )
    _require_images(plan, config)
    engine.write(_ROWS, folder / ROWS)
    write_text(folder / PLAN, plan.model_dump_json())


def _require_images(plan: ShardPlan, config: ShardConfig) -> None:
    fractions: dict[SplitName, float] = {"train": 1.0, "val": config.val_fraction, "test": config.test_fraction}
    for name, fraction in fractions.items():
        if fraction > 0 and not plan.num_images[name]:
            raise DataError(
                f"split '{name}' would be empty: {sum(plan.num_images.values())} images in {sum(plan.cluster_sizes)} "
                f"clusters are too few for a fraction of {fraction:g}; keep more pairs, or raise "
                f"shard.{name}_fraction (0 leaves val or test out)"
            )


def _split(config: ShardConfig, num_images: int) -> str:
    """SQL: the split of a cluster (num_images, draw) as an index of SPLITS.

    It depends only on the draw of the smallest image (unless the cluster is too large to be held out).
    """
    most = max(math.floor(config.max_cluster_share * num_images), 1)
    ends = config.val_fraction, config.val_fraction + config.test_fraction
    val, both = (f"CAST('{end!r}' AS DOUBLE)" for end in ends)
    return f"CASE WHEN num_images > {most} OR draw >= {both} THEN 0 WHEN draw < {val} THEN 1 ELSE 2 END"


#: The images of kept pairs, from `kept` and `hashes`.
_IMAGES = """
    SELECT used.image, used.place, used.draw, hashes.phash
    FROM (SELECT image, min(place) AS place, min(draw) AS draw FROM kept GROUP BY image) AS used
    LEFT JOIN hashes ON hashes.image = used.image
"""
#: The same with the smallest image of their cluster.
_LABELLED = """
    SELECT images.image, images.place, images.draw, coalesce(labels.label, images.image) AS label
    FROM images LEFT JOIN {labels} AS labels ON labels.node = images.image
"""
#: Each cluster with the draw of its smallest image.
_CLUSTERS = """
    SELECT label, count(*) AS num_images, min(CASE WHEN image = label THEN draw END) AS draw
    FROM labelled GROUP BY label
"""
#: Each image with its position in its split.
_PLACED = """
    SELECT labelled.image, splits.split,
           row_number() OVER (PARTITION BY splits.split ORDER BY labelled.place, labelled.image) - 1 AS position
    FROM labelled JOIN (SELECT label, {split} AS split FROM clusters) AS splits ON splits.label = labelled.label
"""
_ROWS = f"""
    SELECT placed.split, placed.position, {", ".join(f"kept.{name}" for name in _SHOWN)}
    FROM kept JOIN placed ON placed.image = kept.image ORDER BY placed.split, placed.position
"""
