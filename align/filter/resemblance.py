"""Rule `pair_low_similarity`, shard by shard: a given model looks at the pairs that all other rules keep."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.filter import ModelFile
from align.filter.measure import Measuring, commit, places_of
from align.filter.similarity import EmbedImages, EmbedTexts, packaged_towers, similarities
from align.filter.tables import MAX_ROWS, SIMILARITIES
from align.formats.raw import RawShard, iter_images


def resemble_shard(measuring: Measuring, item: tuple[int, RawShard]) -> None:
    """Leaves `similarities` of those pairs of a shard that `left.parquet` names.

    Raises:
        DataError: the tar is unreadable, or the model is no packaged one.
        CorruptError: the model is not the one that was meant.
    """
    index, shard = item
    path = measuring.file("similarities", shard.name)
    if path.exists() or measuring.config.similarity_model is None:
        return
    places = places_of(index, measuring.work / "left.parquet")
    found: list[tuple[int, float | None]] = []
    if len(places):
        pairs = pq.read_table(measuring.file("pairs", shard.name), columns=["image_key", "normalised"])
        texts: dict[str, list[tuple[int, str]]] = {}
        for place, row in zip(places.tolist(), pairs.take(places % MAX_ROWS).to_pylist(), strict=True):
            texts.setdefault(row["image_key"], []).append((place, row["normalised"]))

        def rows() -> Iterator[tuple[str, bytes, str]]:
            for key, data in iter_images(shard):
                for place, text in texts.get(key, ()):
                    yield str(place), data, text

        embed_images, embed_texts = _towers(measuring.config.similarity_model)
        found = sorted((int(place), cosine) for place, cosine in similarities(rows(), embed_images, embed_texts))
    columns = [pa.array([row[field] for row in found], SIMILARITIES.types[field]) for field in range(2)]
    commit(pa.table(columns, schema=SIMILARITIES), path)


def _towers(file: ModelFile) -> tuple[EmbedImages, EmbedTexts]:
    # By name: the filter must not depend on the code of models that come after it (and those on it), see dvc.yaml. What
    # the given model says is fixed by its digest.
    embedder = importlib.import_module("align.model.embedder").Embedder.load(*packaged_towers(file))
    return embedder.embed_images, embedder.embed_texts
