"""What is measured of each shard of data/raw, by itself, in any order and process: its images, its texts, its network.

Each function reads one shard and leaves files in the filter's work folder, each complete or not at all; where the last
one is there, none is made again. `align.filter.tables` has their columns.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import FilterConfig
from align.console import track
from align.errors import DataError
from align.filter.fingerprints import Fingerprints, by_content, near_duplicates
from align.filter.near_duplicates import NearDuplicate, write_embeddings
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_number, pair_tables
from align.filter.tables import BIGRAMS, IMAGES, MAX_ROWS, PAIRS, SCORED, TWINS
from align.filter.words import Int64s
from align.formats.policy import OptedOut
from align.formats.raw import RawShard, iter_images, read_table
from align.pairs.perceptual_hash import ImageSignals, image_signals
from align.work import in_threads

T = TypeVar("T")

#: Of data/raw.
_MEASURED = ("url", "caption", "key", "status", "original_width", "original_height", "sha256", "image_key")
_ADDRESSED = (*_MEASURED, "page_url")


@dataclass(frozen=True)
class Measuring:
    """What measuring needs beside the shard. Picklable.

    Attributes:
        work: the filter's work folder.
        config: the cuts.
        opted_out: whose pairs are flagged.
        num_threads: pictures that a process works on side by side.
        progress: shown for each picture, not only for each shard.
    """

    work: Path
    config: FilterConfig
    opted_out: OptedOut
    num_threads: int
    progress: bool

    def file(self, what: str, shard: str) -> Path:
        """Where a shard's `pairs`, `images`, `unigrams`, `bigrams`, `scored`, `embeddings` or `similarities` are."""
        return self.work / what / f"{shard}.{'arrow' if what == 'embeddings' else 'parquet'}"


def measure_shard(measuring: Measuring, item: tuple[int, RawShard]) -> None:
    """Leaves `images`, `unigrams`, `bigrams` and at last `pairs` of a shard.

    Args:
        measuring: what it needs.
        item: the shard's position in the listing, and the shard.

    Raises:
        DataError: its table or tar is unreadable, or a key occurs twice.
    """
    index, shard = item
    pairs = measuring.file("pairs", shard.name)
    if pairs.exists():
        return
    wanted = _ADDRESSED if measuring.opted_out else _MEASURED
    table = _in_order_of_keys(read_table(shard, wanted), shard)
    images = measuring.file("images", shard.name)
    if not images.exists():
        commit(image_table(index, table, shard, measuring), images)
    known_images = pq.ParquetFile(images, pre_buffer=False).read(use_threads=False)
    by_language = measuring.config.languages is not None
    measured = pair_tables(index, table, known_images, measuring.opted_out, by_language=by_language)
    for name, one in measured.items():
        commit(one, measuring.file(name, shard.name))


def _in_order_of_keys(table: pa.Table, shard: RawShard) -> pa.Table:
    if len(table) > MAX_ROWS:
        raise DataError(f"{shard.table}: {len(table):,} pairs; a shard may have {MAX_ROWS:,}: make smaller ones")
    keys = table["key"].combine_chunks()
    if not pc.all(pc.greater(keys[1:], keys[:-1]), min_count=0).as_py():  # img2dataset writes rows as they come
        table = table.sort_by("key")
        keys = table["key"].combine_chunks()
    twice = pc.equal(keys[1:], keys[:-1]).index(True).as_py()
    if twice >= 0:
        raise DataError(
            f"{shard.table}: key {keys[twice]} occurs more than once; number the shards of merged folders anew"
        )
    return table


def image_table(index: int, table: pa.Table, shard: RawShard, measuring: Measuring) -> pa.Table:
    """IMAGES of a shard: size, whether it decodes, hash, and the evaluation images that resemble it by hash."""
    config = measuring.config
    rows = {key: row for row, key in enumerate(table["key"].to_pylist())}
    found = _distinct_images(table)
    wanted = {image_key: image_id for image_id, (_, image_key) in found.items()}

    images = ((wanted[key], data) for key, data in iter_images(shard) if key in wanted)
    signals = dict(_tracked(_signals(images, measuring), measuring, len(wanted)))
    fingerprints = Fingerprints.of(signals.items())
    references = read_fingerprints(measuring.work)
    twins: dict[str, list[str]] = {}
    for left, right in near_duplicates(
        fingerprints,
        references,
        max_phash_distance=config.max_phash_distance,
        correlation_above=config.thumbnail_correlation_above,
    ):
        twins.setdefault(fingerprints.owners[left], []).append(references.owners[right])
    widths, heights = table["original_width"].to_pylist(), table["original_height"].to_pylist()
    out = []
    for image_id, (row, image_key) in found.items():
        if image_id not in signals:
            continue  # the tar lacks what the table promises
        one = signals[image_id]
        # a table that says the size at the source: img2dataset shrinks pictures
        owner = rows.get(image_key, row)
        names = twins.get(image_id, [])
        out.append({
            "place": index * MAX_ROWS + row, "image": image_number(image_id), "image_id": image_id,
            "image_key": image_key, "width_px": widths[owner] or one.width_px,
            "height_px": heights[owner] or one.height_px, "decodable": one.phash is not None, "phash": one.phash,
            "evaluation_sets": sorted({name.partition("/")[0] for name in names}), "twin": min(names, default=None),
        })  # fmt: skip
    return pa.Table.from_pylist(out, IMAGES)


def _signals(images: Iterable[tuple[str, bytes]], measuring: Measuring) -> Iterator[tuple[str, ImageSignals]]:
    return in_threads(
        partial(_named_signals, max_pixels=measuring.config.max_image_pixels), images, measuring.num_threads
    )


def _named_signals(item: tuple[str, bytes], max_pixels: int) -> tuple[str, ImageSignals]:
    return item[0], image_signals(item[1], max_pixels)


def _tracked(items: Iterator[T], measuring: Measuring, total: int) -> Iterator[T]:
    return track(items, what="filter: images", total=total) if measuring.progress else items


def _distinct_images(table: pa.Table) -> dict[str, tuple[int, str]]:
    """image_id -> (row of its first pair, key of the tar sample that holds it)."""
    found: dict[str, tuple[int, str]] = {}
    columns = zip(table["sha256"].to_pylist(), table["image_key"].to_pylist(), strict=True)
    for row, (image_id, image_key) in enumerate(columns):
        if image_id is not None and image_key is not None:
            found.setdefault(image_id, (row, image_key))
    return found


def require_growing_keys(pairs: Path, shards: Sequence[str], raw: Path) -> None:
    """Keys must grow from shard to shard: then none occurs twice, and in order of places keys are in order.

    Raises:
        DataError: they do not.
    """
    last: tuple[str, str] | None = None
    for name in shards:
        metadata = pq.read_metadata(pairs / f"{name}.parquet")
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group).column(PAIRS.get_field_index("key")).statistics
            if found is None or not found.has_min_max:
                continue  # no rows
            if last is not None and found.min <= last[1]:
                raise DataError(
                    f"{raw}: keys of shard {name} (from {found.min}) do not come after those of shard {last[0]} "
                    f"(up to {last[1]}); number the shards of merged folders anew"
                )
            last = (name, found.max)


def score_shard(measuring: Measuring, item: tuple[int, RawShard]) -> None:
    """Leaves `scored` and `embeddings` of those images of a shard that `candidates.parquet` names.

    Raises:
        DataError: the tar is unreadable.
    """
    index, shard = item
    scored = measuring.file("scored", shard.name)
    if scored.exists():
        return
    keys = images_at(places_of(index, measuring.work / "candidates.parquet"), measuring.file("pairs", shard.name))
    scores: list[tuple[int, float]] = []
    if keys:
        network = ImageNetwork(measuring.config.near_duplicate_embedder, measuring.num_threads)
        images = ((keys[key], data) for key, data in iter_images(shard) if key in keys)
        measured = network.measure(images, max_pixels=measuring.config.max_image_pixels)

        def rows() -> Iterator[tuple[str, NDArray[np.float16]]]:
            for one in _tracked(measured, measuring, len(keys)):
                scores.append((image_number(one.name), one.nsfw_score))
                yield one.name, one.embedding

        embeddings = measuring.file("embeddings", shard.name)
        embeddings.parent.mkdir(exist_ok=True)
        write_embeddings(embeddings, rows(), network.width)
    images_scored = pa.array([image for image, _ in scores], pa.int64())
    commit(pa.table([images_scored, pa.array([score for _, score in scores], pa.float64())], schema=SCORED), scored)


def places_of(index: int, file: Path) -> Int64s:
    """The places of a shard that a file lists (column `place`, in order); only its part of the file is read."""
    low = index * MAX_ROWS
    filters = [("place", ">=", low), ("place", "<", low + MAX_ROWS)]
    found: Int64s = pq.read_table(file, columns=["place"], filters=filters)["place"].to_numpy()
    return found


def images_at(places: Int64s, pairs: Path) -> dict[str, str]:
    """image_key -> image_id of the pairs at some places of a shard."""
    if not len(places):
        return {}
    rows = pq.read_table(pairs, columns=["image_key", "image_id"]).take(places % MAX_ROWS)
    return dict(zip(rows["image_key"].to_pylist(), rows["image_id"].to_pylist(), strict=True))


def twin_table(found: Iterable[NearDuplicate]) -> pa.Table:
    """TWINS, from what `find_near_duplicates` yields."""
    near: dict[str, list[tuple[float, str]]] = {}
    for one in found:
        near.setdefault(one.image_id, []).append((-one.cosine, one.reference))
    rows = []
    for image_id, those in sorted(near.items()):
        names = sorted({reference.partition("/")[0] for _, reference in those})
        cosine, closest = min(those)
        rows.append({
            "image": image_number(image_id), "num_evaluation_sets": len(names), "evaluation_sets": names,
            "twin": closest, "twin_cosine": -cosine,
        })  # fmt: skip
    return pa.Table.from_pylist(rows, TWINS)


def write_fingerprints(work: Path, images: Mapping[bytes, Sequence[str]], measuring: Measuring) -> None:
    """Leaves what `image_table` compares with, once for all shards: of evaluation images, with names SET/KEY."""
    path = work / "references.npz"
    if path.exists():
        return
    found = Fingerprints.of(by_content(partial(_signals, measuring=measuring), images))
    beside = work / f".references.{os.getpid()}.npz"
    np.savez(
        beside,
        owners=np.array(found.owners, np.str_),
        phashes=found.phashes,
        thumbnails=found.thumbnails,
        colours=found.colours,
    )
    os.replace(beside, path)


def read_fingerprints(work: Path) -> Fingerprints:
    """What `write_fingerprints` left."""
    with np.load(work / "references.npz") as stored:
        return Fingerprints(stored["owners"].tolist(), stored["phashes"], stored["thumbnails"], stored["colours"])


def commit(table: pa.Table, path: Path) -> None:
    """Writes a table that is there complete or not at all."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    looked_up = [name for name in ("place", "key") if name in table.column_names]
    # most of it are random numbers; packing the rest would cost more than reading it twice
    packed = {"place": "DELTA_BINARY_PACKED"} if table.schema.equals(BIGRAMS) else None  # many rows of one place
    pq.write_table(
        table, beside, compression="none", use_dictionary=False, write_statistics=looked_up, column_encoding=packed
    )
    os.replace(beside, path)
