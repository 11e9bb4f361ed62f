"""Steps 3 and 4, with the network: scores, rule I5 by embedding, and images that look alike.

Score: the network sees the images that some pair would keep under the cheap rules, one shard at a time. Compare: the
scored images of all shards against the evaluation images. With `filter.drop_repeats: semantic`, the images that are
still kept among themselves, by cluster; a machine has all their embeddings on its disk then, 3.6 kB each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.display.console import track
from align.durable.pieces import Piece
from align.filter.near_duplicates import (
    Kmeans,
    NearDuplicate,
    alike_in,
    by_content,
    centroids_of,
    clusters_of,
    homes_of,
    is_sampled,
    near_duplicates_in,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import ALIKE, CLOSE, CLUSTERED, MAX_ROWS, SCORED, TWINS
from align.filter.work_folder import NumberedShard, Shards, WorkFolder, by_shard, commit, write_arrays
from align.formats.evaluation_set import EvaluationSet, distinct_pictures
from align.formats.features import Features, folder_of
from align.formats.raw import iter_images
from align.interfaces.executor import Executor

#: The clusters of the scored images.
_CLUSTERS = Piece("clusters", "clusters.npz")


def score_shard(work: WorkFolder, item: NumberedShard, *, share: float) -> None:
    """Writes `embeddings`, `sampled` and last `scored` of those images of a shard that its `candidates` name.

    Embeddings are large: where machines share no disk, only tasks read them.

    Args:
        work: the work folder.
        item: the shard.
        share: of all images, those in `sampled`: see `near_duplicates.sampled_share`.

    Raises:
        DataError: the tar is unreadable.
    """
    _, shard = item
    if work.has("scored", shard.name):
        return
    row_numbers = pq.read_table(work.file("candidates", shard.name), columns=["row_number"])["row_number"].to_numpy()
    image_ids = _images_of(row_numbers, work.file("pairs", shard.name))
    scores: list[tuple[int, float]] = []
    if image_ids:
        network = ImageNetwork(work.config.near_duplicate_embedder, work.threads_per_worker)
        images = ((image_ids[key], data) for key, data in iter_images(shard) if key in image_ids)
        measured = network.measure(images, max_pixels=work.config.max_image_pixels)

        def rows() -> Iterator[tuple[str, NDArray[np.float16]]]:
            for one in work.tracked(measured, len(image_ids)):
                scores.append((image_hash(one.name), one.nsfw_score))
                if is_sampled(one.name, share):
                    sampled.append((one.name, one.embedding))
                yield one.name, one.embedding

        sampled: list[tuple[str, NDArray[np.float16]]] = []
        for table, written in (("embeddings", rows()), ("sampled", sampled)):
            write_embeddings(work.file(table, shard.name), written, network.width)
        work.pieces.give(work.piece("embeddings", shard.name))
    columns = [pa.array([row[field] for row in scores], SCORED.types[field]) for field in range(2)]
    commit(pa.table(columns, schema=SCORED), work.file("scored", shard.name))


def _images_of(row_numbers: NDArray[np.int64], pairs: Path) -> dict[str, str]:
    """image_key -> image_id of some pairs of a shard."""
    if not len(row_numbers):
        return {}
    rows = pq.read_table(pairs, columns=["image_key", "image_id"]).take(row_numbers % MAX_ROWS)
    return dict(zip(rows["image_key"].to_pylist(), rows["image_id"].to_pylist(), strict=True))


def compare_with_evaluation_images(
    work: WorkFolder, executor: Executor, shards: Shards, sets: Sequence[EvaluationSet], kmeans: Kmeans
) -> None:
    """Writes twins.parquet (TWINS). Evaluation images get all threads, since no other process works meanwhile."""
    path = work.path / "twins.parquet"
    if not path.exists():
        commit(twin_table(close_images(work, executor, shards, ("evaluation", sets), kmeans)), path)


def close_images(
    work: WorkFolder,
    executor: Executor,
    shards: Shards,
    named_sets: tuple[str, Sequence[EvaluationSet]],
    kmeans: Kmeans,
) -> list[NearDuplicate]:
    """The scored images whose embedding is close to that of an image of these sets. Each shard is a task.

    Args:
        work: the work folder.
        executor: does the tasks.
        shards: all of them.
        named_sets: the evaluation sets, and a name for the files that are made of them.
        kmeans: see `Kmeans`.
    """
    name, sets = named_sets
    config, views = work.config, work.path / f"{name}.arrow"
    if not sets:
        return []
    centroids = _centroids(work, shards, kmeans)
    if not len(centroids):
        return []
    if not views.exists():
        network = ImageNetwork(config.near_duplicate_embedder, work.num_threads)
        measure = partial(network.views, max_pixels=config.max_image_pixels)
        decides = [network.digest, config.near_duplicate_embedder, config.max_image_pixels]
        folder = folder_of(work.features, "views", "align.filter.network", decides)

        def decoded(data: bytes) -> NDArray[np.float16]:
            return np.frombuffer(data, np.float16).reshape(-1, network.width)

        look = partial(Features(folder, np.ndarray.tobytes, decoded).look, measure)
        rows = track(by_content(look, distinct_pictures(sets)), what="filter: evaluation images")
        write_embeddings(views, rows, network.width)
    write_arrays(work.path / f"{name}.npz", clusters=clusters_of(read_embeddings(views), centroids))
    table = f"close_{name}"
    reads = [_CLUSTERS, Piece(name, f"{name}.npz", partial(list, [views.name]))]  # which can be pickled
    work.fill(executor, table, shards, partial(compare_shard, name=name), reads=reads)
    close = (pq.read_table(work.file(table, shard.name)).to_pylist() for _, shard in shards)
    return [NearDuplicate(**row) for rows in close for row in rows]


def compare_shard(work: WorkFolder, item: NumberedShard, *, name: str) -> None:
    """Writes `close_NAME` (CLOSE) of a shard: see `close_images`."""
    shard = item[1].name
    work.pieces.bring([work.piece("scored", shard)])
    rows: list[dict[str, Any]] = []
    if pq.read_metadata(work.file("scored", shard)).num_rows:
        work.pieces.bring([work.piece("embeddings", shard)])
        views = read_embeddings(work.path / f"{name}.arrow")
        with np.load(work.path / f"{name}.npz") as stored:
            groups = _read_centroids(work), stored["clusters"]
        rows = [asdict(one) for one in near_duplicates_in(work.file("embeddings", shard), views, groups, work.config)]
    commit(pa.Table.from_pylist(rows, CLOSE), work.file(f"close_{name}", shard))


def alike_images(work: WorkFolder, executor: Executor, shards: Shards, kmeans: Kmeans) -> None:
    """Writes `alike` (ALIKE) of kept_images.parquet. Each shard is a task twice: its images, then its clusters."""
    _centroids(work, shards, kmeans)
    of_shard = "kept_images", partial(by_shard, work.path / "kept_images.parquet", len(shards))
    work.fill(executor, "clustered", shards, cluster_shard, reads=[_CLUSTERS], of_shard=of_shard)
    work.fill(executor, "alike", shards, partial(compare_clusters, names=[shard.name for _, shard in shards]))


def _centroids(work: WorkFolder, shards: Shards, kmeans: Kmeans) -> NDArray[np.float32]:
    """The clusters of the scored images (`near_duplicates.centroids_of`), made at the first call."""
    if not (work.path / _CLUSTERS.last).exists():
        sampled = [work.file("sampled", shard.name) for _, shard in shards if work.has("sampled", shard.name)]
        write_arrays(work.path / _CLUSTERS.last, centroids=centroids_of(sampled, work.config, kmeans))
    return _read_centroids(work)


def _read_centroids(work: WorkFolder) -> NDArray[np.float32]:
    with np.load(work.path / _CLUSTERS.last) as stored:
        centroids: NDArray[np.float32] = stored["centroids"]
    return centroids


def cluster_shard(work: WorkFolder, item: NumberedShard) -> None:
    """Writes `vectors`, a shard's kept images by cluster and then by row number, and `clustered` (CLUSTERED)."""
    shard = item[1].name
    kept = pq.read_table(work.file("kept_images", shard))["image_hash"].to_pylist()
    centroids = _read_centroids(work)
    ends = np.zeros(len(centroids), np.int64)
    if kept and len(centroids):
        work.pieces.bring([work.piece("embeddings", shard)])
        images = read_embeddings(work.file("embeddings", shard))
        rows = {image_hash(name): row for row, name in enumerate(images.names)}
        order = np.array([rows[one] for one in kept if one in rows], np.int64)  # others do not decode
        homes = homes_of(images.vectors[order], centroids)
        order = order[np.argsort(homes, kind="stable")]
        ends = np.bincount(homes, minlength=len(centroids)).cumsum()
        kept_rows = ((images.names[row], images.vectors[row]) for row in order)
        write_embeddings(work.file("vectors", shard), kept_rows, images.vectors.shape[1])
        work.pieces.give(work.piece("vectors", shard))
    commit(pa.table([pa.array(ends)], schema=CLUSTERED), work.file("clustered", shard))


def compare_clusters(work: WorkFolder, item: NumberedShard, *, names: Sequence[str]) -> None:
    """Writes `alike` (ALIKE) of every cluster whose turn it is, if all shards take turns."""
    work.pieces.bring([work.piece("clustered", name) for name in names])
    tables = [pq.read_table(work.file("clustered", name))["end"].to_numpy() for name in names]
    ends = {name: np.insert(table, 0, 0) for name, table in zip(names, tables, strict=True) if table[-1:].any()}
    work.pieces.bring([work.piece("vectors", name) for name in ends])
    found: list[NearDuplicate] = []
    for cluster in range(item[0], len(tables[0]), len(names)):
        slices = [(work.file("vectors", name), int(end[cluster]), int(end[cluster + 1])) for name, end in ends.items()]
        size = sum(stop - start for _, start, stop in slices)
        if size > 1:
            width = read_embeddings(slices[0][0], 0, 0).vectors.shape[1]
            with TemporaryFile(dir=work.path) as file:
                room = np.memmap(file, np.float16, "w+", shape=(size, width))
                found += alike_in(slices, room, work.config.semantic_cosine_above)
    rows = [{"image_hash": image_hash(one.image_id), "twin": one.reference, "twin_cosine": one.cosine} for one in found]
    commit(pa.Table.from_pylist(rows, ALIKE), work.file("alike", item[1].name))


def twin_table(matches: Iterable[NearDuplicate], by_hash: Mapping[str, str] | None = None) -> pa.Table:
    """TWINS.

    Args:
        matches: by embedding.
        by_hash: image id -> SET/KEY of an evaluation image that it resembles by hash; of one set.
    """
    near: dict[str, list[tuple[float, str]]] = {}
    for match in matches:
        near.setdefault(match.image_id, []).append((-match.cosine, match.reference))
    rows: list[tuple[Any, ...]] = [
        (image_hash(image_id), 1, [name.partition("/")[0]], name, None)
        for image_id, name in sorted((by_hash or {}).items())
        if image_id not in near
    ]
    for image_id, references in sorted(near.items()):
        names = sorted({reference.partition("/")[0] for _, reference in references})
        cosine, closest = min(references)
        rows.append((image_hash(image_id), len(names), names, closest, -cosine))
    return pa.Table.from_pylist([dict(zip(TWINS.names, row, strict=True)) for row in rows], TWINS)
