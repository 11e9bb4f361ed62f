"""Embeds the pictures of an evaluation set as a stream: threads decode, the model encodes, few pictures are in memory.

A picture that cannot be read or decoded is left out and named. Under CUDA the model runs in bfloat16 where that is safe
(autocast); on a CPU in float32, where bfloat16 is slower.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from align.console import track
from align.errors import DataError
from align.formats.evaluation_set import EvaluationSet
from align.model.embedder import Embedder, Embeddings
from align.model.preprocess import centre_crop, decode
from align.processes import in_threads

Crop = NDArray[np.uint8]


class Towers(Protocol):
    """A model as the evaluation sees it."""

    def crop(self, picture: bytes) -> Crop:
        """An image file's bytes -> (H, W, 3) what the model is shown of it; threads share this.

        Raises:
            DataError: the picture does not decode.
        """

    def embed_crops(self, crops: Iterable[Crop]) -> Embeddings:
        """(num_crops, width) float32, L2-normalised rows."""

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """(num_texts, width) float32, L2-normalised rows."""


class ModelTowers:
    """The towers of a model folder; on a GPU if there is one. Raises as `align.model.embedder.load_with_tokenizer`."""

    def __init__(self, directory: Path) -> None:
        self._embedder = Embedder.load(directory)
        self._config = self._embedder.config

    def crop(self, picture: bytes) -> Crop:
        """See `Towers`."""
        return centre_crop(decode(picture, self._config.resize_px), self._config.image_px)

    def embed_crops(self, crops: Iterable[Crop]) -> Embeddings:
        """See `Towers`."""
        with _precision():
            return self._embedder.embed_pixels(crops)

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """See `Towers`."""
        with _precision():
            return self._embedder.embed_texts(texts)


def _precision() -> AbstractContextManager[object]:
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()


def embed_pictures(source: EvaluationSet, towers: Towers) -> tuple[list[int], Embeddings, dict[int, str]]:
    """Embeds every picture of a set.

    Returns:
        The positions of the items that have an embedding, growing; (num_positions, width) their embeddings; and
        position -> why there is none, of the others.

    Raises:
        DataError: no picture of the set can be read and decoded, or an embedding is not finite.
    """
    faults: dict[int, str] = {}
    positions: list[int] = []

    def crops() -> Iterator[Crop]:
        pictures = track(
            source.read(fault=faults.__setitem__), what=f"evaluate: {source.name}", total=len(source.images)
        )
        for position, crop in in_threads(lambda item: _crop(item, towers), pictures, os.cpu_count() or 1):
            if isinstance(crop, str):
                faults[position] = crop
            else:
                positions.append(position)
                yield crop

    embeds = finite(towers.embed_crops(crops()), source.name)
    if faults and not positions:
        position, why = min(faults.items())
        raise DataError(
            f"evaluation set {source.name}: none of its {len(faults):,} pictures can be shown to the model; "
            f"{source.images[position].key}: {why}"
        )
    return positions, embeds, dict(sorted(faults.items()))


def finite(embeds: Embeddings, name: str) -> Embeddings:
    """The embeddings. Raises DataError where one is not a finite number."""
    if not np.isfinite(embeds).all():
        raise DataError(f"evaluation set {name}: the embeddings are not finite; train the model again")
    return embeds


def _crop(item: tuple[int, bytes], towers: Towers) -> tuple[int, Crop | str]:
    try:
        return item[0], towers.crop(item[1])
    except DataError as error:
        return item[0], str(error)
