"""A few inputs of `align embed` -> a table of embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from align.errors import DataError
from align.model.embedder import Embedder
from align.model.preprocess import centre_crop, decode
from align.search.inputs import EmbedInput


def embed_rows(rows: Iterable[EmbedInput], embedder: Embedder) -> pa.Table:
    """Embeds inputs: columns row, path, text, embedding, error. Columns without values in the input hold nulls."""
    columns: dict[str, list[Any]] = {"row": [], "path": [], "text": [], "error": []}
    texts: list[tuple[int, str]] = []
    images: list[int] = []

    def crops() -> Iterator[NDArray[np.uint8]]:
        for position, item in enumerate(rows):
            error = item.error
            if isinstance(item.content, str):
                texts.append((position, item.content))
            elif item.content is not None:
                try:
                    pixels = decode(item.content, embedder.config.resize_px)
                except DataError as failure:
                    error = str(failure)
                else:
                    images.append(position)
                    yield centre_crop(pixels, embedder.config.image_px)
            columns["row"].append(item.row)
            columns["path"].append(item.path)
            columns["text"].append(item.content if isinstance(item.content, str) else None)
            columns["error"].append(error)

    image_embeds = embedder.embed_pixels(crops())  # reads every row, including texts
    text_embeds = embedder.embed_texts([text for _, text in texts])
    embeddings: list[NDArray[np.float32] | None] = [None] * len(columns["row"])
    for position, vector in zip(images, image_embeds, strict=True):
        embeddings[position] = vector
    for (position, _), vector in zip(texts, text_embeds, strict=True):
        embeddings[position] = vector
    return pa.table(
        {
            "row": pa.array(columns["row"], pa.int64()),
            "path": pa.array(columns["path"], pa.string()),
            "text": pa.array(columns["text"], pa.string()),
            "embedding": pa.array(embeddings, pa.list_(pa.float32())),
            "error": pa.array(columns["error"], pa.string()),
        }
    )
