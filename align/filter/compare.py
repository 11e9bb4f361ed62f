"""Steps 3 and 4, with the network: scores, and rule I5 by embedding.

Score: the network sees the images that some pair would keep under the cheap rules, one shard at a time. Compare: the
scored images of all shards against the evaluation images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
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
    by_content,
    centroids_of,
    clusters_of,
    is_sampled,
    near_duplicates_in,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import CLOSE, MAX_ROWS, SCORED, TWINS
from align.filter.work_folder import NumberedShard, Shards, WorkFolder, commit, write_arrays
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


def twin_table(matches: Iterable[NearDuplicate]) -> pa.Table:
    """TWINS of what was found by embedding."""
    near: dict[str, list[tuple[float, str]]] = {}
    for match in matches:
        near.setdefault(match.image_id, []).append((-match.cosine, match.reference))
    rows: list[tuple[Any, ...]] = []
    for image_id, references in sorted(near.items()):
        names = sorted({reference.partition("/")[0] for _, reference in references})
        cosine, closest = min(references)
        rows.append((image_hash(image_id), len(names), names, closest, -cosine))
    return pa.Table.from_pylist([dict(zip(TWINS.names, row, strict=True)) for row in rows], TWINS)
