"""Image-text similarity by a given model: a filter beyond ALIGN, off by default (`filter.similarity_model`).

This module knows no model. It checks that the given folder is the one that was meant, and takes the two towers as
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from align.config.filter import ModelFile
from align.errors import CorruptError, DataError
from align.files import sha256_folder

EmbedImages = Callable[[Sequence[bytes]], NDArray[np.float32]]
EmbedTexts = Callable[[Sequence[str]], NDArray[np.float32]]

#: Pairs embedded at a time.
_BATCH = 256


def packaged_towers(file: ModelFile) -> tuple[Path, Path]:
    """The model and the tokenizer folder inside a folder of `align package`, once its bytes are known to be right.

    Raises:
        DataError: there is no such folder, or it is none of `align package`.
        CorruptError: its files have another sha256.
    """
    folder = Path(file.path)
    where = f"filter.similarity_model: {folder}"
    models = sorted(folder.glob("artifacts/*/model.safetensors"))
    tokenizers = sorted(folder.glob("artifacts/*/tokenizer.json"))
    if len(models) != 1 or len(tokenizers) != 1:
        raise DataError(f"{where}: no packaged model here; give a folder that `align package` wrote, or null")
    digest = sha256_folder(folder)
    if digest != file.sha256:
        raise CorruptError(f"{where}: its sha256 is {digest}, not {file.sha256}; give the right folder or digest")
    return models[0].parent, tokenizers[0].parent


def similarities(
    pairs: Iterable[tuple[str, bytes, str]], embed_images: EmbedImages, embed_texts: EmbedTexts
) -> Iterator[tuple[str, float | None]]:
    """Yields (key, cosine of image and text, 4 decimals) for each (key, image bytes, text), in order.

    None where the model cannot read the image. An image that stands in consecutive pairs is embedded once.

    Args:
        pairs: read lazily, few at a time.
        embed_images: (N,) files' bytes -> (N, width) L2-normalised; raises DataError at an image that it cannot read.
        embed_texts: (N,) texts -> (N, width) L2-normalised.
    """
    remaining = iter(pairs)
    while batch := list(islice(remaining, _BATCH)):
        images = list(dict.fromkeys(data for _, data, _ in batch))
        embedded = dict(zip(images, _embedded(images, embed_images), strict=True))
        texts = embed_texts([text for _, _, text in batch])
        for (key, data, _), text in zip(batch, texts, strict=True):
            image = embedded[data]
            yield key, None if image is None else round(float(image @ text), 4)


def _embedded(images: list[bytes], embed_images: EmbedImages) -> list[NDArray[np.float32] | None]:
    try:
        return list(embed_images(images))
    except DataError:
        if len(images) == 1:
            return [None]
        half = len(images) // 2  # one of them cannot be read: look for it
        return _embedded(images[:half], embed_images) + _embedded(images[half:], embed_images)
