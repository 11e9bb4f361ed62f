"""Step 3, score, with the network: rule I1's scores, and rule I5 by embedding.

The network sees the images that some pair would keep under the cheap rules, one shard at a time. Their embeddings are
compared at once with those of the evaluation images.
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
from align.durable.steps import Step
from align.filter.near_duplicates import (
    NearDuplicate,
    by_content,
    matches_by_embedding,
    read_embeddings,
    write_embeddings,
)
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import CLOSE, MAX_ROWS, SCORED, TWINS
from align.filter.work_folder import FilterWork, NumberedShard, Shards, write_table
from align.formats.evaluation_set import EvaluationSet, distinct_pictures
from align.formats.features import Features, folder_of
from align.formats.raw import iter_images
from align.interfaces.executor import Executor
from align.services.vector_index import RangeIndex

#: The result with what embeddings are compared with: the views of the evaluation images, and the index of these.
_EVALUATION, _VIEWS, _INDEX = "evaluation", "views.arrow", "index.faiss"


def score(work: FilterWork, executor: Executor, shards: Shards, sets: Sequence[EvaluationSet]) -> None:
    """Makes `evaluation`, `scored` of each shard, and `twins` (TWINS): images close to one of these sets."""
    work.work.fetch(["judged"])
    candidates = pq.read_metadata(work.folder / "judged/candidates.parquet").num_rows
    compares = bool(sets and candidates)
    if compares:  # with all threads, since no other process works meanwhile
        work.work.make(_EVALUATION, partial(_write_views, work, sets))
    needs = ["measured/{}", *([_EVALUATION] if compares else [])]
    what = "filter: shards, the network"
    work.run(Step("scored", partial(score_shard, compares), what, needs), shards, executor)
    work.work.make("twins", partial(_write_twins, work, shards))


def score_shard(compares: bool, work: FilterWork, out: Path, item: NumberedShard) -> None:
    """Writes `scored` (SCORED) and `close` (CLOSE) of the images of a shard that `judged/candidates` names.

    Raises:
        DataError: the tar is unreadable.
    """
    index, shard = item
    row_numbers = work.rows("judged/candidates", index)["row_number"].to_numpy()
    image_ids = _images_of(row_numbers, work.measured(shard, "pairs"))
    scores: list[tuple[int, float]] = []
    close: list[NearDuplicate] = []
    if image_ids:
        network = open_network(work, work.threads_per_worker)
        images = ((image_ids[key], data) for key, data in iter_images(shard) if key in image_ids)
        measured = network.measure(images, max_pixels=work.config.max_image_pixels)

        def embeddings() -> Iterator[tuple[str, NDArray[np.float16]]]:
            for one in work.tracked(measured, len(image_ids)):
                scores.append((image_hash(one.name), one.nsfw_score))
                yield one.name, one.embedding

        if compares:
            folder, cut = work.folder / _EVALUATION, work.config.near_duplicate_cosine_above
            find = RangeIndex(folder / _INDEX).above
            close = [*matches_by_embedding(embeddings(), read_embeddings(folder / _VIEWS), find, cut)]
        else:
            for _ in embeddings():
                pass
    columns = [pa.array([row[field] for row in scores], SCORED.types[field]) for field in range(2)]
    write_table(pa.table(columns, schema=SCORED), out / "scored.parquet")
    write_table(pa.Table.from_pylist([asdict(one) for one in close], CLOSE), out / "close.parquet")


def open_network(work: FilterWork, num_threads: int) -> ImageNetwork:
    """The network that the parameters name."""
    return ImageNetwork(work.config.nsfw_model, work.config.near_duplicate_embedder, work.device, num_threads)


def _images_of(row_numbers: NDArray[np.int64], pairs: Path) -> dict[str, str]:
    """image_key -> image_id of some pairs of a shard."""
    if not len(row_numbers):
        return {}
    rows = pq.read_table(pairs, columns=["image_key", "image_id"]).take(row_numbers % MAX_ROWS)
    return dict(zip(rows["image_key"].to_pylist(), rows["image_id"].to_pylist(), strict=True))


def _write_views(work: FilterWork, sets: Sequence[EvaluationSet], out: Path) -> None:
    config = work.config
    network = open_network(work, work.num_threads)
    measure = partial(network.views, max_pixels=config.max_image_pixels)
    decides = [network.digest, config.near_duplicate_embedder, work.device, config.max_image_pixels]
    folder = folder_of(work.features, "views", "align.filter.network", decides)

    def decoded(data: bytes) -> NDArray[np.float16]:
        return np.frombuffer(data, np.float16).reshape(-1, network.width)

    look = partial(Features(folder, np.ndarray.tobytes, decoded).look, measure)
    rows = track(by_content(look, distinct_pictures(sets)), what="filter: evaluation images")
    write_embeddings(out / _VIEWS, rows, network.width)
    RangeIndex.write(read_embeddings(out / _VIEWS).vectors, out / _INDEX)


def _write_twins(work: FilterWork, shards: Shards, out: Path) -> None:
    tables = (pq.read_table(work.folder / "scored" / shard.name / "close.parquet") for _, shard in shards)
    matches = (NearDuplicate(**row) for table in tables for row in table.to_pylist())
    write_table(twin_table(matches), out / "twins.parquet")


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
