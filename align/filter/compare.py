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
    NearDuplicate,
    by_content,
    near_duplicates_in,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import CLOSE, MAX_ROWS, SCORED, TWINS
from align.filter.work_folder import NumberedShard, Shards, WorkFolder, commit
from align.formats.evaluation_set import EvaluationSet, distinct_pictures
from align.formats.features import Features, folder_of
from align.formats.raw import iter_images
from align.interfaces.executor import Executor
from align.services.vector_index import RangeIndex

#: The views of the evaluation images, and the index of these.
_VIEWS, _INDEX = "evaluation.arrow", "evaluation.faiss"
_EVALUATION = Piece("evaluation", _INDEX, partial(list, [_VIEWS]))  # which can be pickled


def score_shard(work: WorkFolder, item: NumberedShard) -> None:
    """Writes `embeddings` and last `scored` of those images of a shard that its `candidates` name.

    Embeddings are large: where machines share no disk, only tasks read them.

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

        write_embeddings(work.file("embeddings", shard.name), rows(), network.width)
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
    work: WorkFolder, executor: Executor, shards: Shards, sets: Sequence[EvaluationSet]
) -> None:
    """Writes twins.parquet (TWINS): the scored images whose embedding is close to that of an image of these sets.

    Each shard is a task. Evaluation images get all threads, since no other process works meanwhile.
    """
    path = work.path / "twins.parquet"
    if path.exists():
        return
    matches: list[NearDuplicate] = []
    if sets and pq.read_metadata(work.path / "candidates.parquet").num_rows:
        _write_views(work, sets)
        work.fill(executor, "close", shards, compare_shard, reads=[_EVALUATION])
        for _, shard in shards:
            matches += (NearDuplicate(**row) for row in pq.read_table(work.file("close", shard.name)).to_pylist())
    commit(twin_table(matches), path)


def _write_views(work: WorkFolder, sets: Sequence[EvaluationSet]) -> None:
    """Writes the views of the evaluation images, and last their index."""
    config, views = work.config, work.path / _VIEWS
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
    if not (work.path / _INDEX).exists():
        RangeIndex.write(read_embeddings(views).vectors, work.path / _INDEX)


def compare_shard(work: WorkFolder, item: NumberedShard) -> None:
    """Writes `close` (CLOSE) of a shard: its scored images that show what an evaluation image shows."""
    shard = item[1].name
    work.pieces.bring([work.piece("scored", shard)])
    rows: list[dict[str, Any]] = []
    if pq.read_metadata(work.file("scored", shard)).num_rows:
        work.pieces.bring([work.piece("embeddings", shard)])
        views, find = read_embeddings(work.path / _VIEWS), RangeIndex(work.path / _INDEX).above
        cut = work.config.near_duplicate_cosine_above
        rows = [asdict(one) for one in near_duplicates_in(work.file("embeddings", shard), views, find, cut)]
    commit(pa.Table.from_pylist(rows, CLOSE), work.file("close", shard))


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
