"""Step 1, measure: what rules need to know of each shard's images and texts, one shard at a time.

Shards can be measured in any order and in any process. `align.filter.tables` has the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from align.display.console import say
from align.durable.processes import in_threads
from align.errors import DataError
from align.filter.near_duplicates import Fingerprints, by_content, matches_by_hash
from align.filter.pair_tables import image_hash, pair_tables
from align.filter.tables import IMAGES, MAX_ROWS, PAIRS
from align.filter.work_folder import FilterWork, NumberedShard, write_table
from align.formats.evaluation_set import EvaluationSet, distinct_pictures
from align.formats.features import Features, folder_of
from align.formats.raw import STATED_SHA256, RawShard, iter_images, read_table
from align.pairs.perceptual_hash import ImageSignals, from_bytes, image_signals, to_bytes

#: Columns of data/raw.
_MEASURED = ("url", "caption", "key", "status", "original_width", "original_height", "sha256", "image_key")
_ADDRESSED = (*_MEASURED, "page_url", STATED_SHA256)
#: The result with what pictures are compared with, and its file.
REFERENCES, _FINGERPRINTS = "references", "fingerprints.npz"


def measure_shard(work: FilterWork, out: Path, item: NumberedShard) -> None:
    """Writes `images`, `unigrams`, `bigrams` and `pairs` of a shard.

    Raises:
        DataError: its table or tar is unreadable, or a key occurs twice.
        CorruptError: its table or tar is not what manifest.json names.
    """
    index, shard = item
    shard.require_whole()
    wanted = _ADDRESSED if work.opted_out else _MEASURED
    licences = ("licence",) if work.config.licences else ()
    table = _in_order_of_keys(read_table(shard, (*wanted, *licences)), shard)
    images = image_table(index, table, shard, work)
    write_table(images, out / "images.parquet")
    for name, one in pair_tables(index, table, images, work.opted_out, work.config).items():
        write_table(one, out / f"{name}.parquet")


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
            f"{shard.table}: key {keys[twice]} occurs more than once; give the shards of merged folders new numbers"
        )
    return table


def image_table(index: int, table: pa.Table, shard: RawShard, work: FilterWork) -> pa.Table:
    """IMAGES of a shard: size, whether it decodes, hash, and the evaluation images that resemble it by hash."""
    config = work.config
    row_of_key = {key: row for row, key in enumerate(table["key"].to_pylist())}
    distinct = _distinct_images(table)
    image_ids = {image_key: image_id for image_id, (_, image_key) in distinct.items()}

    pictures = ((image_ids[key], data) for key, data in iter_images(shard) if key in image_ids)
    measured = measured_signals(pictures, config.max_image_pixels, work.threads_per_worker)
    signals = dict(work.tracked(measured, len(image_ids)))
    fingerprints = Fingerprints.of(signals.items())
    references = _read_fingerprints(work.folder / REFERENCES)
    twins: dict[str, list[str]] = {}
    for left, right in matches_by_hash(fingerprints, references):
        twins.setdefault(fingerprints.owners[left], []).append(references.owners[right])
    widths, heights = table["original_width"].to_pylist(), table["original_height"].to_pylist()
    images: list[dict[str, Any]] = []
    for image_id, (row, image_key) in distinct.items():
        if image_id not in signals:
            continue  # the table names it, but the tar does not have it
        one = signals[image_id]
        # the table's size is that at the source, since img2dataset shrinks pictures
        owner = row_of_key.get(image_key, row)
        names = twins.get(image_id, [])
        images.append(
            {
                "row_number": index * MAX_ROWS + row,
                "image_hash": image_hash(image_id),
                "image_id": image_id,
                "image_key": image_key,
                "width_px": widths[owner] or one.width_px,
                "height_px": heights[owner] or one.height_px,
                "is_picture": (one.width_px or 0) * (one.height_px or 0) in range(1, config.max_image_pixels + 1),
                "decodable": one.phash is not None,
                "phash": one.phash,
                "evaluation_sets": sorted({name.partition("/")[0] for name in names}),
                "twin": min(names, default=None),
            }
        )
    return pa.Table.from_pylist(images, IMAGES)


def measured_signals(
    images: Iterable[tuple[str, bytes]], max_pixels: int, num_threads: int
) -> Iterator[tuple[str, ImageSignals]]:
    """The signals of each (name, bytes), in order; threads share the work."""
    return in_threads(lambda image: (image[0], image_signals(image[1], max_pixels)), images, num_threads)


def _distinct_images(table: pa.Table) -> dict[str, tuple[int, str]]:
    """image_id -> (row of its first pair, key of the tar sample that holds it)."""
    distinct: dict[str, tuple[int, str]] = {}
    columns = zip(table["sha256"].to_pylist(), table["image_key"].to_pylist(), strict=True)
    for row, (image_id, image_key) in enumerate(columns):
        if image_id is not None and image_key is not None:
            distinct.setdefault(image_id, (row, image_key))
    return distinct


def require_ascending_keys(measured: Path, shards: Sequence[str], raw: Path) -> None:
    """Keys must grow from shard to shard: then no key occurs twice, and keys grow with row numbers.

    Raises:
        DataError: they do not.
    """
    last: tuple[str, str] | None = None
    for name in shards:
        metadata = pq.read_metadata(measured / name / "pairs.parquet")
        for group in range(metadata.num_row_groups):
            keys = metadata.row_group(group).column(PAIRS.get_field_index("key")).statistics
            if keys is None or not keys.has_min_max:
                continue  # no rows
            if last is not None and keys.min <= last[1]:
                raise DataError(
                    f"{raw}: keys of shard {name} (from {keys.min}) do not come after those of shard {last[0]} "
                    f"(up to {last[1]}); give the shards of merged folders new numbers"
                )
            last = (name, keys.max)


def write_fingerprints(work: FilterWork, sets: Sequence[EvaluationSet], out: Path) -> None:
    """Writes the fingerprints of evaluation images, which `image_table` compares with, once for all shards."""
    max_pixels = work.config.max_image_pixels
    measure = partial(measured_signals, max_pixels=max_pixels, num_threads=work.num_threads)
    folder = folder_of(work.features, "signals", "align.pairs.perceptual_hash", [max_pixels])
    look = partial(Features(folder, to_bytes, from_bytes).look, measure)
    distinct = distinct_pictures(sets)
    if distinct.faults:
        say(
            f"filter: warning: {len(distinct.faults):,} pictures of evaluation sets cannot be read, so rule I5 "
            f"does not keep them out of training, such as {min(distinct.faults)}"
        )
    np.savez(out / _FINGERPRINTS, **vars(Fingerprints.of(by_content(look, distinct))))


def _read_fingerprints(folder: Path) -> Fingerprints:
    with np.load(folder / _FINGERPRINTS) as stored:
        arrays = dict(stored)
    return Fingerprints(arrays.pop("owners").tolist(), **arrays)
