"""Step 3, score: the network on the images that some pair would keep under the cheap rules, one shard at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.filter.near_duplicates import write_embeddings
from align.filter.network import ImageNetwork
from align.filter.pair_tables import image_hash
from align.filter.tables import MAX_ROWS, SCORED
from align.filter.work_folder import NumberedShard, WorkFolder, commit, row_numbers_of
from align.formats.raw import iter_images


def score_shard(work: WorkFolder, item: NumberedShard) -> None:
    """Writes `embeddings` and last `scored` of those images of a shard that candidates.parquet names.

    Raises:
        DataError: the tar is unreadable.
    """
    index, shard = item
    if work.has("scored", shard.name):
        return
    row_numbers = row_numbers_of(index, work.path / "candidates.parquet")
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
