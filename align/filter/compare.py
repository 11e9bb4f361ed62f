"""Steps 3 and 4, with the network: scores, and rule I5 by embedding.

Score: the network sees the images that some pair would keep under the cheap rules, one shard at a time. Compare: the
scored images of all shards against the evaluation images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.display.console import track
from align.filter.near_duplicates import (
    Kmeans,
    NearDuplicate,
    by_content,
    find_near_duplicates,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import MAX_ROWS, SCORED, TWINS
from align.filter.work_folder import NumberedShard, Shards, WorkFolder, commit
from align.formats.evaluation_set import EvaluationSet, distinct_pictures
from align.formats.features import Features, folder_of
from align.formats.raw import iter_images


def score_shard(work: WorkFolder, item: NumberedShard) -> None:
    """Writes `embeddings` and last `scored` of those images of a shard that its `candidates` name.

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
                yield one.name, one.embedding

        embeddings = work.file("embeddings", shard.name)
        embeddings.parent.mkdir(exist_ok=True)
        write_embeddings(embeddings, rows(), network.width)
    columns = [pa.array([row[field] for row in scores], SCORED.types[field]) for field in range(2)]
    commit(pa.table(columns, schema=SCORED), work.file("scored", shard.name))


def _images_of(row_numbers: NDArray[np.int64], pairs: Path) -> dict[str, str]:
    """image_key -> image_id of some pairs of a shard."""
    if not len(row_numbers):
        return {}
    rows = pq.read_table(pairs, columns=["image_key", "image_id"]).take(row_numbers % MAX_ROWS)
    return dict(zip(rows["image_key"].to_pylist(), rows["image_id"].to_pylist(), strict=True))


def compare_with_evaluation_images(
    work: WorkFolder, shards: Shards, sets: Sequence[EvaluationSet], kmeans: Kmeans
) -> None:
    """Writes twins.parquet (TWINS). Evaluation images get all threads, since no other process works meanwhile."""
    path = work.path / "twins.parquet"
    if path.exists():
        return
    files = [work.file("embeddings", shard.name) for _, shard in shards if work.has("embeddings", shard.name)]
    commit(twin_table(close_images(work, files, sets, work.path / "references.arrow", kmeans)), path)


def close_images(
    work: WorkFolder, files: Sequence[Path], sets: Sequence[EvaluationSet], views: Path, kmeans: Kmeans
) -> list[NearDuplicate]:
    """The scored images whose embedding is close to that of an image of these sets.

    Args:
        work: the work folder.
        files: the shards' `embeddings`.
        sets: the evaluation sets.
        views: the file for the sets' embeddings; made if it does not exist.
        kmeans: see `Kmeans`.
    """
    config = work.config
    if not sets or not files:
        return []
    if not views.exists():
        network = ImageNetwork(config.near_duplicate_embedder, work.num_threads)
        measure = partial(network.views, max_pixels=config.max_image_pixels)
        decides = [network.digest, config.near_duplicate_embedder, config.max_image_pixels]
        folder = folder_of(work.features, "views", "align.filter.network", decides)
        look = partial(Features(folder, _to_bytes, partial(_from_bytes, width=network.width)).look, measure)
        rows = track(by_content(look, distinct_pictures(sets)), what="filter: evaluation images")
        write_embeddings(views, rows, network.width)
    return list(find_near_duplicates(files, read_embeddings(views), config, kmeans))


def _to_bytes(views: NDArray[np.float16]) -> bytes:
    return views.tobytes()


def _from_bytes(data: bytes, width: int) -> NDArray[np.float16]:
    return np.frombuffer(data, np.float16).reshape(-1, width)


def twin_table(matches: Iterable[NearDuplicate], by_hash: Mapping[str, str] | None = None) -> pa.Table:
    """TWINS.

    Args:
        matches: by embedding.
        by_hash: image id -> SET/KEY of an evaluation image that it resembles by hash; of one set.
    """
    near: dict[str, list[tuple[float, str]]] = {}
    for match in matches:
        near.setdefault(match.image_id, []).append((-match.cosine, match.reference))
    rows: list[dict[str, Any]] = [
        {
            "image_hash": image_hash(image_id),
            "num_evaluation_sets": 1,
            "evaluation_sets": [name.partition("/")[0]],
            "twin": name,
            "twin_cosine": None,
        }
        for image_id, name in sorted((by_hash or {}).items())
        if image_id not in near
    ]
    for image_id, references in sorted(near.items()):
        names = sorted({reference.partition("/")[0] for _, reference in references})
        cosine, closest = min(references)
        rows.append(
            {
                "image_hash": image_hash(image_id),
                "num_evaluation_sets": len(names),
                "evaluation_sets": names,
                "twin": closest,
                "twin_cosine": -cosine,
            }
        )
    return pa.Table.from_pylist(rows, TWINS)
