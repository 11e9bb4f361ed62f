"""Step 4, compare: rule I5 by embedding, the scored images of all shards against the evaluation images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.console import track
from align.filter.features import Features, folder_of
from align.filter.fingerprints import by_content
from align.filter.near_duplicates import (
    Kmeans,
    NearDuplicate,
    find_near_duplicates,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import TWINS
from align.filter.work_folder import Shards, WorkFolder, commit
from align.formats.evaluation_set import EvaluationSet, distinct_images


def compare_with_evaluation_images(
    work: WorkFolder, shards: Shards, sets: Sequence[EvaluationSet], kmeans: Kmeans
) -> None:
    """Writes twins.parquet (TWINS). All threads are for evaluation images, as no other process works meanwhile."""
    path, views = work.path / "twins.parquet", work.path / "references.arrow"
    if path.exists():
        return
    config = work.config
    files = [work.file("embeddings", shard.name) for _, shard in shards if work.has("embeddings", shard.name)]
    matches: list[NearDuplicate] = []
    if sets and files:
        if not views.exists():
            network = ImageNetwork(config.near_duplicate_embedder, work.num_threads)
            measure = partial(network.views, max_pixels=config.max_image_pixels)
            decides = [network.digest, config.near_duplicate_embedder, config.max_image_pixels]
            folder = folder_of(work.features, "views", "align.filter.network", decides)
            kept = Features(folder, _to_bytes, partial(_from_bytes, width=network.width))
            look = partial(kept.look, measure)
            rows = track(by_content(look, distinct_images(sets)), what="filter: evaluation images")
            write_embeddings(views, rows, network.width)
        matches += find_near_duplicates(files, read_embeddings(views), config, kmeans)
    commit(_twin_table(matches), path)


def _to_bytes(views: NDArray[np.float16]) -> bytes:
    return views.tobytes()


def _from_bytes(data: bytes, width: int) -> NDArray[np.float16]:
    return np.frombuffer(data, np.float16).reshape(-1, width)


def _twin_table(matches: Iterable[NearDuplicate]) -> pa.Table:
    near: dict[str, list[tuple[float, str]]] = {}
    for match in matches:
        near.setdefault(match.image_id, []).append((-match.cosine, match.reference))
    rows = []
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
