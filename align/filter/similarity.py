"""Rule `pair_low_similarity`: a given model compares image and text. Beyond ALIGN, and off by default.

The model is a folder of `align package`, named with its digest by `filter.similarity_model`. It sees only the pairs
that all other rules keep.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from align.config.filter import ModelFile
from align.durable.files import sha256_folder
from align.errors import CorruptError, DataError
from align.filter.tables import MAX_ROWS, SIMILARITIES
from align.filter.work_folder import NumberedShard, WorkFolder, commit, row_numbers_of
from align.formats.raw import iter_images

EmbedImages = Callable[[Sequence[bytes]], NDArray[np.float32]]
EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]

#: Pairs embedded at a time.
_BATCH = 256


def compare_texts(work: WorkFolder, item: NumberedShard) -> None:
    """Writes `similarities` of those pairs of a shard that remaining.parquet names.

    Raises:
        DataError: the tar is unreadable, or the folder holds no packaged model.
        CorruptError: the model has another sha256 than the one given.
    """
    index, shard = item
    if work.has("similarities", shard.name) or work.config.similarity_model is None:
        return
    row_numbers = row_numbers_of(index, work.path / "remaining.parquet")
    cosines: list[tuple[int, float | None]] = []
    if len(row_numbers):
        pairs = pq.read_table(work.file("pairs", shard.name), columns=["image_key", "text"])
        texts: dict[str, list[tuple[int, str]]] = {}
        for row_number, row in zip(row_numbers.tolist(), pairs.take(row_numbers % MAX_ROWS).to_pylist(), strict=True):
            texts.setdefault(row["image_key"], []).append((row_number, row["text"]))

        def rows() -> Iterator[tuple[str, bytes, str]]:
            for key, data in iter_images(shard):
                for row_number, text in texts.get(key, ()):
                    yield str(row_number), data, text

        embed_images, embed_texts = _towers(work.config.similarity_model)
        cosines = sorted((int(name), cosine) for name, cosine in similarities(rows(), embed_images, embed_texts))
    columns = [pa.array([row[field] for row in cosines], SIMILARITIES.types[field]) for field in range(2)]
    commit(pa.table(columns, schema=SIMILARITIES), work.file("similarities", shard.name))


def _towers(file: ModelFile) -> tuple[EmbedImages, EmbedTexts]:
    # Imported by name, so that the filter's digest does not cover the code of models, which are trained after it. The
    # model's digest already fixes what the given model computes.
    embedder = importlib.import_module("align.model.embedder").Embedder.load(packaged_towers(file))
    return embedder.embed_images, embedder.embed_texts


def packaged_towers(file: ModelFile) -> Path:
    """The model folder inside a folder of `align package`, after a check of its digest.

    Raises:
        DataError: the folder does not exist, or `align package` did not write it.
        CorruptError: its files have another sha256.
    """
    folder = Path(file.path)
    where = f"filter.similarity_model: {folder}"
    models = sorted(folder.glob("artifacts/*/model.safetensors"))
    if len(models) != 1:
        raise DataError(f"{where}: no packaged model here; name a folder that `align package` wrote, or null")
    digest = sha256_folder(folder)
    if digest != file.sha256:
        raise CorruptError(f"{where}: its sha256 is {digest}, not {file.sha256}; correct the path or the digest")
    return models[0].parent


def similarities(
    pairs: Iterable[tuple[str, bytes, str]], embed_images: EmbedImages, embed_texts: EmbedTexts
) -> Iterator[tuple[str, float | None]]:
    """Yields (name, cosine of image and text, 4 decimals) for each (name, image bytes, text), in order.

    The cosine is None where the model cannot read the image. An image of several consecutive pairs is embedded once.

    Args:
        pairs: read lazily, a batch at a time.
        embed_images: (N,) files' bytes -> (N, width) L2-normalised; raises DataError for an image that it cannot read.
        embed_texts: (N,) texts -> (N, width) L2-normalised.
    """
    remaining = iter(pairs)
    while batch := list(islice(remaining, _BATCH)):
        images = list(dict.fromkeys(data for _, data, _ in batch))
        embedded = dict(zip(images, _embedded(images, embed_images), strict=True))
        texts = embed_texts([text for _, _, text in batch])
        for (name, data, _), text in zip(batch, texts, strict=True):
            image = embedded[data]
            yield name, None if image is None else round(float(image @ text), 4)


def _embedded(images: list[bytes], embed_images: EmbedImages) -> list[NDArray[np.float32] | None]:
    try:
        return list(embed_images(images))
    except DataError:
        if len(images) == 1:
            return [None]
        half = len(images) // 2  # one of the images cannot be read: find it
        return _embedded(images[:half], embed_images) + _embedded(images[half:], embed_images)
