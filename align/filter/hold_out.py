"""The evaluation set `held_out`: a share of one's own pairs that no model trains on (`filter.hold_out`).

It is chosen last, among the pairs that every rule keeps, by cluster: images that share a text or look nearly the same
are held out together, or not at all. Then rule I5 compares the images that stay with those that left, as it does for
every other set. A cluster's fate depends on its own images alone, so more data moves no older image, except in clusters
that new images join or that become small enough.

Clusters span all shards, so they are found on one machine, in numpy arrays and not in SQL; the engines decide the rest,
from the same files. Memory: that of the set, and half a gigabyte for each four million kept pairs, at most two. Disk:
while the set is written, its bytes are stored twice.

The paper does not split its data; all of this is our decision.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import FilterConfig
from align.display.console import say, track
from align.durable.buckets import Buckets, in_order, num_buckets
from align.durable.spool import Spool
from align.errors import DataError
from align.filter.compare import close_images, twin_table
from align.filter.measure import measured_signals
from align.filter.near_duplicates import Fingerprints, Kmeans, by_content, near_duplicates
from align.filter.pair_tables import image_hash, image_hashes
from align.filter.tables import HELD_OUT_IMAGES, MAX_ROWS
from align.filter.work_folder import RowsInOrder, Shards, WorkFolder, commit
from align.formats.evaluation_set import HELD_OUT, EvaluationImage, EvaluationSet, distinct_pictures
from align.formats.evaluation_sets.align_tar import held_out_sets, write_set
from align.formats.raw import image_spans
from align.interfaces.executor import Executor
from align.pairs.clusters import Clusters
from align.pairs.perceptual_hash import ImageSignals

#: Images whose perceptual hashes differ in at most this many bits are one cluster, as `shard.near_duplicate_bits`. It
#: only decides what is held out together: rule I5 drops every other copy by its own cuts.
_NEAR_BITS = 4

Hashes = NDArray[np.uint64]


def hold_out(work: WorkFolder, executor: Executor, shards: Shards, kmeans: Kmeans) -> None:
    """Writes the set, held_out_images.parquet (HELD_OUT_IMAGES) and held_out_twins.parquet (TWINS) to the work folder.

    Reads undivided.parquet, the verdicts of every other rule.
    """
    folder = work.path / "held_out_buckets"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run
    folder.mkdir()
    chosen, leaders, num_clusters = _choose(work, shards, folder)
    shutil.rmtree(folder)
    commit(pa.table([pa.array(chosen.view(np.int64))], schema=HELD_OUT_IMAGES), work.path / "held_out_images.parquet")
    twins = twin_table([])
    if len(chosen):
        with Spool(work.path) as spool:
            write_set(work.path / HELD_OUT, _set(work, shards, chosen, leaders, spool))
        twins = _twins(work, executor, shards, chosen, kmeans)
    else:
        share = work.config.hold_out
        say(f"filter: warning: none of {num_clusters:,} clusters is held out; raise filter.hold_out ({share})")
    commit(twins, work.path / "held_out_twins.parquet")


def _kept(batch: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
    return batch.filter(pc.equal(batch["mask"], 0))


def _unsigned(column: pa.Array | pa.ChunkedArray) -> Hashes:
    """Hashes as unsigned numbers, whose order is that of image ids."""
    return np.asarray(column.to_numpy()).view(np.uint64)


def _choose(work: WorkFolder, shards: Shards, folder: Path) -> tuple[Hashes, Hashes, int]:
    """The held-out images, ascending; the smallest image of each one's cluster; and the number of all clusters.

    A cluster larger than the share of all images that is asked for stays in training: it would fill the set.
    """
    with pq.ParquetFile(work.path / "undivided.parquet", pre_buffer=False) as undivided:
        count = num_buckets(undivided.metadata.num_rows)
        pairs = Buckets(folder, "pairs", {"image": "u8", "text": "u8"}, count)
        for batch in map(_kept, undivided.iter_batches(columns=["image_hash", "text_hash", "mask"])):
            images = _unsigned(batch["image_hash"])
            pairs.add(in_order(images, count), image=images, text=_unsigned(batch["text_hash"]))
    looks = Buckets(folder, "looks", {"image": "u8", "phash": "u8"}, count)
    for _, shard in shards:
        table = pq.read_table(work.file("images", shard.name), columns=["image_hash", "phash"])
        table = table.filter(pc.is_valid(table["phash"]))
        images = _unsigned(table["image_hash"])
        looks.add(in_order(images, count), image=images, phash=table["phash"].to_numpy())
    clusters = Clusters(folder, count, {"hash": "u8"})
    for bucket in range(count):
        mine, look = pairs.take(bucket), looks.take(bucket)
        images, of_pair = np.unique(mine["image"], return_inverse=True)
        rows, index = _rows_of(look["image"], images)
        phashes = np.zeros(len(images), np.uint64)  # every kept one decodes, so it has one
        phashes[index] = look["phash"][rows]
        clusters.add(of_pair, mine["text"], phashes, {"hash": images})
    largest = max(work.config.hold_out * clusters.start(count), 1)
    held_out: list[tuple[Hashes, Hashes]] = []
    num_clusters = 0
    for members in clusters.members(_NEAR_BITS):
        leaders, of_image = np.unique(members.facts_of_label["hash"], return_inverse=True)
        num_clusters += len(leaders)
        # "held_out" only keeps this hash different from others of the same image
        drawn = b"".join(hashlib.sha256(f"held_out {image:016x}".encode()).digest()[:8] for image in leaders.tolist())
        draws = np.frombuffer(drawn, ">u8").astype(np.float64) / 2.0**64
        chosen = (draws[of_image] < work.config.hold_out) & (members.sizes <= largest)
        held_out.append((members.facts["hash"][chosen], leaders[of_image[chosen]]))
    images, leaders = (np.concatenate(side) for side in zip(*held_out, strict=True))
    order = np.argsort(images)
    return images[order], leaders[order], num_clusters


def _rows_of(listed: Hashes, images: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of hashes that are among some images, which ascend, and the index there of each."""
    if not len(images):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    index = np.minimum(np.searchsorted(images, listed), len(images) - 1)
    rows = np.flatnonzero(images[index] == listed)
    return rows, index[rows]


def _set(
    work: WorkFolder,
    shards: Shards,
    chosen: Hashes,
    leaders: Hashes,
    spool: Spool,
) -> EvaluationSet:
    """The set: its images under their ids, with their kept texts, and the cluster as the concept; pictures in `spool`.

    Raises:
        DataError: a tar lost an image since it was measured.
    """
    texts: dict[int, dict[str, None]] = {index: {} for index in range(len(chosen))}
    found: dict[int, tuple[str, int]] = {}  # image id, and where its picture is in the spool
    verdicts = RowsInOrder(work.path / "undivided.parquet", ["row_number", "image_hash", "mask"])
    for number, shard in track(shards, what="filter: shards, the held-out set", total=len(shards)):
        kept = _kept(verdicts.below((number + 1) * MAX_ROWS))
        mine, of_pair = _rows_of(_unsigned(kept["image_hash"]), chosen)
        if len(mine):
            rows = kept["row_number"].to_numpy()[mine] % MAX_ROWS
            column = pq.read_table(work.file("pairs", shard.name), columns=["text"])["text"].take(pa.array(rows))
            for index, text in zip(of_pair.tolist(), column.to_pylist(), strict=True):
                texts[index].setdefault(text)
        images = pq.read_table(work.file("images", shard.name), columns=["image_hash", "image_id", "image_key"])
        rows_here, indices = _rows_of(_unsigned(images["image_hash"]), chosen)
        wanted = {
            images["image_key"][row].as_py(): (index, images["image_id"][row].as_py())
            for row, index in zip(rows_here.tolist(), indices.tolist(), strict=True)
            if index not in found
        }
        if not wanted:
            continue
        with shard.local_tar().open("rb") as tar:
            for key, offset, size in image_spans(tar, str(shard.tar)):
                if key not in wanted:
                    continue
                index, image_id = wanted[key]
                tar.seek(offset)
                found[index] = image_id, spool.add(tar.read(size))
    if lost := texts.keys() - found.keys():
        raise DataError(
            f"{shards[0][1].tar.parent}: {len(lost):,} images of kept pairs are missing; run `align ingest` and then "
            "`align filter` again"
        )
    sorted_images = sorted(found.items())
    concepts = np.searchsorted(chosen, leaders).tolist()
    images_of_set = [
        EvaluationImage(image_id, found[concepts[index]][0], tuple(texts[index]), None, None, "query")
        for index, (image_id, _) in sorted_images
    ]
    places = [place for _, (_, place) in sorted_images]

    def pictures(positions: Sequence[int]) -> Iterator[bytes]:
        return spool.read([places[position] for position in positions])

    about = f"a share of one's own pairs that no model trains on (filter.hold_out {work.config.hold_out})"
    return EvaluationSet(HELD_OUT, "retrieval", about, images_of_set, (), (), pictures)


def _twins(work: WorkFolder, executor: Executor, shards: Shards, chosen: Hashes, kmeans: Kmeans) -> pa.Table:
    """TWINS of the images that stay and show what a held-out one shows, by rule I5.

    It compares the images that no rule has dropped yet, by hash and thumbnail as in step 1 and by embedding as in step
    4.
    """
    say("filter: near-duplicates of the held-out set")
    sets = held_out_sets(work.path)
    matches = close_images(work, executor, shards, (HELD_OUT, sets), kmeans)
    close = np.unique(image_hashes([match.image_id for match in matches]).view(np.uint64))
    by_hash: dict[str, str] = {}
    stay: set[int] = set()  # those of the close ones that no rule drops
    verdicts = RowsInOrder(work.path / "undivided.parquet", ["row_number", "image_hash", "mask"])
    look = partial(measured_signals, max_pixels=work.config.max_image_pixels, num_threads=work.num_threads)
    references = Fingerprints.of(by_content(look, distinct_pictures(sets)))
    for number, shard in shards:
        kept = _unsigned(_kept(verdicts.below((number + 1) * MAX_ROWS))["image_hash"])
        kept = np.setdiff1d(kept, chosen)
        stay.update(close[_rows_of(kept, close)[1]].tolist())
        by_hash |= _twins_by_hash(work.file("images", shard.name), kept, references, work.config)
    return twin_table([match for match in matches if image_hash(match.image_id) % (1 << 64) in stay], by_hash)


def _twins_by_hash(images: Path, stay: Hashes, references: Fingerprints, config: FilterConfig) -> dict[str, str]:
    """Of the images of a shard that stay: image id -> SET/KEY of the first that it resembles."""
    columns = ["image_hash", "image_id", "phash", "thumbnail"]
    table = pq.read_table(images, columns=columns)
    table = table.take(pa.array(_rows_of(_unsigned(table["image_hash"]), stay)[0]))
    rows = zip(*(table[name].to_pylist() for name in columns[1:]), strict=True)
    ours = Fingerprints.of(
        (image_id, ImageSignals(None, None, phash, thumbnail)) for image_id, phash, thumbnail in rows
    )
    twins: dict[str, str] = {}
    for left, right in near_duplicates(ours, references, config):
        name = references.owners[right]
        twins[ours.owners[left]] = min(twins.get(ours.owners[left], name), name)
    return twins
