"""The evaluation set `held_out`: a share of one's own pairs that no model trains on (`filter.hold_out`).

It is chosen last, among the pairs that every rule keeps, by cluster: images that share a text or look nearly the same
are held out together, or not at all. Then rule I5 compares the images that stay with those that left, as it does for
every other set. A cluster's fate depends on its own images alone, so more data moves no older image, except in clusters
that new images join or that become small enough.

Clusters span all shards, so they are found on one machine, in numpy arrays and not in SQL; the engines decide the rest,
from the same files. Memory: 30 bytes per kept pair and 120 per kept image, as `align shard` needs after it. Disk: while
the set is written, its bytes are stored twice.

The paper does not split its data; all of this is our decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import FilterConfig
from align.display.console import say, track
from align.errors import DataError
from align.filter.compare import close_images, twin_table
from align.filter.measure import measured_signals
from align.filter.near_duplicates import Fingerprints, Kmeans, by_content, near_duplicates
from align.filter.pair_tables import image_hash
from align.filter.tables import HELD_OUT_IMAGES, MAX_ROWS
from align.filter.work_folder import Shards, WorkFolder, commit
from align.formats.evaluation_set import HELD_OUT, EvaluationImage, EvaluationSet, Spool, Unreadable, distinct_pictures
from align.formats.evaluation_sets.align_tar import held_out_sets, write_set
from align.formats.raw import image_spans
from align.pairs.clusters import cluster
from align.pairs.perceptual_hash import ImageSignals

#: Images whose perceptual hashes differ in at most this many bits are one cluster, as `shard.near_duplicate_bits`. It
#: only decides what is held out together: rule I5 drops every other copy by its own cuts.
_NEAR_BITS = 4

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class _Kept:
    """The pairs and images that every rule keeps.

    Attributes:
        rows: (P,) row numbers of the pairs, ascending.
        images: (N,) image hashes as unsigned numbers, ascending, which is the order of image ids.
        of_pair: (P,) index of each pair's image in `images`.
        texts: (P,) hashes of the texts.
    """

    rows: NDArray[np.int64]
    images: Hashes
    of_pair: NDArray[np.int64]
    texts: Hashes


def hold_out(work: WorkFolder, shards: Shards, kmeans: Kmeans) -> None:
    """Writes the set, held_out_images.parquet (HELD_OUT_IMAGES) and held_out_twins.parquet (TWINS) to the work folder.

    Reads undivided.parquet, the verdicts of every other rule.
    """
    kept = _read_kept(work)
    labels, chosen = _choose(kept, _perceptual_hashes(work, shards, kept.images), work.config)
    commit(
        pa.table([pa.array(kept.images[chosen].view(np.int64))], schema=HELD_OUT_IMAGES),
        work.path / "held_out_images.parquet",
    )
    twins = twin_table([])
    if chosen.any():
        with Spool(work.path) as spool:
            write_set(work.path / HELD_OUT, _set(work, shards, kept, labels, chosen, spool))
        twins = _twins(work, shards, kept.images[~chosen], held_out_sets(work.path), kmeans)
    else:
        num = len(np.unique(labels))
        say(f"filter: warning: none of {num:,} clusters is held out; raise filter.hold_out ({work.config.hold_out})")
    commit(twins, work.path / "held_out_twins.parquet")


def _read_kept(work: WorkFolder) -> _Kept:
    table = pq.read_table(
        work.path / "undivided.parquet", columns=["row_number", "image_hash", "text_hash"], filters=[("mask", "==", 0)]
    )
    images, of_pair = np.unique(table["image_hash"].to_numpy().view(np.uint64), return_inverse=True)
    return _Kept(table["row_number"].to_numpy(), images, of_pair, table["text_hash"].to_numpy().view(np.uint64))


def _perceptual_hashes(work: WorkFolder, shards: Shards, images: Hashes) -> Hashes:
    """(N,) of the images; every kept one decodes, so it has one."""
    phashes = np.zeros(len(images), np.uint64)
    for _, shard in shards:
        table = pq.read_table(work.file("images", shard.name), columns=["image_hash", "phash"])
        table = table.filter(pc.is_valid(table["phash"]))
        rows, index = _rows_of(table["image_hash"], images)
        phashes[index] = table["phash"].to_numpy()[rows]
    return phashes


def _rows_of(column: pa.ChunkedArray, images: Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a column of image hashes that are among some images, and the index there of each."""
    if not len(images):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    listed = column.to_numpy().view(np.uint64)
    index = np.minimum(np.searchsorted(images, listed), len(images) - 1)
    rows = np.flatnonzero(images[index] == listed)
    return rows, index[rows]


def _choose(kept: _Kept, phashes: Hashes, config: FilterConfig) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(N,) the smallest image of each image's cluster, and whether the cluster is held out.

    A cluster larger than the share of all images that is asked for stays in training: it would fill the set.
    """
    labels = cluster(len(kept.images), kept.of_pair, kept.texts, phashes, _NEAR_BITS)
    sizes = np.bincount(labels, minlength=len(labels))
    # "held_out" only keeps this hash different from others of the same image
    drawn = b"".join(hashlib.sha256(f"held_out {image:016x}".encode()).digest()[:8] for image in kept.images.tolist())
    draws = np.frombuffer(drawn, ">u8").astype(np.float64) / 2.0**64
    chosen = (draws < config.hold_out) & (sizes <= max(config.hold_out * len(labels), 1))
    return labels, chosen[labels]


def _set(
    work: WorkFolder,
    shards: Shards,
    kept: _Kept,
    labels: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    spool: Spool,
) -> EvaluationSet:
    """The set: its images under their ids, with their kept texts, and the cluster as the concept; pictures in `spool`.

    Raises:
        DataError: a tar lost an image since it was measured.
    """
    texts: dict[int, dict[str, None]] = {index: {} for index in np.flatnonzero(chosen).tolist()}
    found: dict[int, tuple[str, int]] = {}  # image id, and where its picture is in the spool
    for number, shard in track(shards, what="filter: shards, the held-out set", total=len(shards)):
        first, end = np.searchsorted(kept.rows, [number * MAX_ROWS, (number + 1) * MAX_ROWS])
        of_pair, rows = kept.of_pair[first:end], kept.rows[first:end] - number * MAX_ROWS
        mine = chosen[of_pair]
        if mine.any():
            column = pq.read_table(work.file("pairs", shard.name), columns=["text"])["text"].take(pa.array(rows[mine]))
            for index, text in zip(of_pair[mine].tolist(), column.to_pylist(), strict=True):
                texts[index].setdefault(text)
        images = pq.read_table(work.file("images", shard.name), columns=["image_hash", "image_id", "image_key"])
        rows_here, indices = _rows_of(images["image_hash"], kept.images)
        wanted = {
            images["image_key"][row].as_py(): (index, images["image_id"][row].as_py())
            for row, index in zip(rows_here.tolist(), indices.tolist(), strict=True)
            if chosen[index] and index not in found
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
    in_order = sorted(found.items())
    images_of_set = [
        EvaluationImage(image_id, found[int(labels[index])][0], tuple(texts[index]), None, None, "query")
        for index, (image_id, _) in in_order
    ]
    places = [place for _, (_, place) in in_order]

    def pictures(positions: Sequence[int]) -> Iterator[bytes | Unreadable]:
        return spool.pictures([places[position] for position in positions])

    about = f"a share of one's own pairs that no model trains on (filter.hold_out {work.config.hold_out})"
    return EvaluationSet(HELD_OUT, "retrieval", about, images_of_set, (), (), pictures)


def _twins(work: WorkFolder, shards: Shards, stay: Hashes, sets: list[EvaluationSet], kmeans: Kmeans) -> pa.Table:
    """TWINS of the images that stay and show what a held-out one shows, by rule I5.

    It compares the images that no rule has dropped yet, by hash and thumbnail as in step 1 and by embedding as in step
    4.
    """
    say("filter: near-duplicates of the held-out set")
    files = [work.file("embeddings", shard.name) for _, shard in shards if work.has("embeddings", shard.name)]
    close = [
        match
        for match in close_images(work, files, sets, work.path / "held_out.arrow", kmeans)
        if len(_rows_of(pa.chunked_array([[image_hash(match.image_id)]]), stay)[0])
    ]
    return twin_table(close, dict(_twins_by_hash(work, shards, stay, sets)))


def _twins_by_hash(
    work: WorkFolder, shards: Shards, stay: Hashes, sets: list[EvaluationSet]
) -> Iterator[tuple[str, str]]:
    """(image id, SET/KEY of the first image that it resembles)."""
    config = work.config
    look = partial(measured_signals, max_pixels=config.max_image_pixels, num_threads=work.num_threads)
    references = Fingerprints.of(by_content(look, distinct_pictures(sets)))
    for _, shard in shards:
        columns = ["image_hash", "image_id", "phash", "thumbnail"]
        table = pq.read_table(work.file("images", shard.name), columns=columns)
        table = table.take(pa.array(_rows_of(table["image_hash"], stay)[0]))
        rows = zip(*(table[name].to_pylist() for name in columns[1:]), strict=True)
        ours = Fingerprints.of(
            (image_id, ImageSignals(None, None, phash, thumbnail)) for image_id, phash, thumbnail in rows
        )
        twins: dict[str, str] = {}
        for left, right in near_duplicates(
            ours,
            references,
            max_phash_distance=config.max_phash_distance,
            correlation_above=config.thumbnail_correlation_above,
        ):
            name = references.owners[right]
            twins[ours.owners[left]] = min(twins.get(ours.owners[left], name), name)
        yield from twins.items()
