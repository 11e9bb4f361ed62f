"""Embeds the pictures of an evaluation set as a stream: threads decode, the model encodes, few pictures are in memory.

Embeddings are kept as float16 between runs, under the digest of their picture, so that a set is embedded once, by
however many protocols it is measured, and a killed run resumes. They are rounded the same way where nothing is kept.

A picture that cannot be read or decoded is left out and named. Under CUDA the model runs in bfloat16 where that is safe
(autocast); on a CPU in float32, where bfloat16 is slower.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from align.display.console import track
from align.durable.processes import in_threads
from align.errors import DataError
from align.formats.evaluation_set import EvaluationSet
from align.formats.features import Features, folder_of
from align.formats.model_folder import model_digest
from align.model.embedder import Crop, Embedder, Embeddings

#: Pictures whose embeddings are in memory as float32.
_PICTURES_AT_ONCE = 1024

Half = NDArray[np.float16]


class Towers(Protocol):
    """A model as the evaluation sees it."""

    def crop(self, picture: bytes) -> Crop:
        """An image file's bytes -> what the model is shown of it; threads share this.

        Raises:
            DataError: the picture does not decode.
        """

    def embed_crops(self, crops: Iterable[Crop]) -> Embeddings:
        """(num_crops, width) float32, L2-normalised rows."""

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """(num_texts, width) float32, L2-normalised rows."""


class LoadedTowers:
    """The towers of a model in memory."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def crop(self, picture: bytes) -> Crop:
        """See `Towers`."""
        return self._embedder.crop(picture)

    def embed_crops(self, crops: Iterable[Crop]) -> Embeddings:
        """See `Towers`."""
        with precision():
            return self._embedder.embed_pixels(crops)

    def embed_texts(self, texts: Iterable[str], part: tuple[int, int] = (0, 1)) -> Embeddings:
        """See `Towers`; `part`: as `Embedder`."""
        with precision():
            return self._embedder.embed_texts(texts, part)

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self._embedder.width


class ModelTowers(LoadedTowers):
    """The towers of a model folder, as `Embedder.load` reads it."""

    def __init__(self, directory: Path, image_px: int | None = None) -> None:
        super().__init__(Embedder.load(directory, image_px))
        #: What decides an embedding, beside code and libraries.
        self.decides = [model_digest(directory), *self._embedder.sees, "cuda" if torch.cuda.is_available() else "cpu"]


def precision() -> AbstractContextManager[object]:
    """In which an evaluation computes."""
    return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_available() else nullcontext()


def embed_pictures(
    source: EvaluationSet, towers: Towers, kept: Path | None = None
) -> tuple[list[int], Embeddings, dict[int, str]]:
    """Embeds every picture of a set that was not embedded before.

    Args:
        source: the set.
        towers: the model.
        kept: the folder for embeddings of earlier and later runs, see `kept_in`; None: nothing is kept. Any number of
            runs may share it, and one that is killed loses a block of pictures.

    Returns:
        The positions of the items that have an embedding, increasing; (num_positions, width) their embeddings; and
        position -> why there is none, of the others.

    Raises:
        DataError: no picture of the set can be read and decoded, or an embedding is not finite; it is not kept.
    """
    faults: dict[int, str] = {}
    positions: list[int] = []
    embeds: Embeddings = np.zeros((0, 1), dtype=np.float32)
    for position, row in embedded(source, towers, kept, faults):
        if not positions:
            embeds = np.empty((len(source.images), len(row)), dtype=np.float32)
        embeds[len(positions)] = row
        positions.append(position)
    if faults and not positions:
        position, why = min(faults.items())
        raise DataError(
            f"evaluation set {source.name}: none of its {len(faults):,} pictures can be shown to the model; "
            f"{source.images[position].key}: {why}"
        )
    embeds = embeds[: len(positions)]
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)  # rounding to float16 changed their lengths
    return positions, embeds, dict(sorted(faults.items()))


def embedded(
    source: EvaluationSet, towers: Towers, kept: Path | None, faults: dict[int, str],
    positions: Sequence[int] | None = None, *, seen: dict[int, bytes] | None = None, shows: bool = True,
) -> Iterator[tuple[int, Half]]:  # fmt: skip
    """Position and embedding of each picture that can be shown to the model; the others are added to `faults`.

    Args:
        source, towers, kept: as of `embed_pictures`.
        faults: position -> why.
        positions: of the pictures, ascending; None: all.
        seen: gets the sha256 of each picture that is read.
        shows: whether to show progress.
    """
    total = len(source.images) if positions is None else len(positions)
    pictures = source.read(positions, faults.__setitem__)
    if shows:
        pictures = track(pictures, what=f"evaluate: {source.name}", total=total)

    def named() -> Iterator[tuple[str, bytes]]:
        for position, picture in pictures:
            if seen is not None:
                seen[position] = hashlib.sha256(picture).digest()
            yield str(position), picture

    measure = partial(_embedded, towers=towers, name=source.name, faults=faults)
    features: Features[Half] = Features(kept, np.ndarray.tobytes, lambda data: np.frombuffer(data, np.float16))
    for name, row in features.look(measure, named()):
        yield int(name), row


def kept_in(root: Path | None, towers: ModelTowers) -> Path | None:
    """The folder of a model's embeddings: one for each model, picture size, code, device and version of libraries.

    Args:
        root: `store.features`; None: nothing is kept.
        towers: the model.
    """
    versions = [("torch", version("torch"))]
    return folder_of(root, "embeddings", "align.model.embedder", [towers.decides, versions])


def _embedded(
    pictures: Iterable[tuple[str, bytes]], *, towers: Towers, name: str, faults: dict[int, str]
) -> Iterator[tuple[str, Half]]:
    """Name and embedding of each picture that decodes; the others are added to `faults`."""
    names: list[str] = []

    def crops() -> Iterator[Crop]:
        for position, crop in in_threads(lambda item: _crop(item, towers), pictures, os.cpu_count() or 1):
            if isinstance(crop, str):
                faults[int(position)] = crop
            else:
                names.append(position)
                yield crop

    shown = crops()
    num_done = 0
    while len(embeds := finite(towers.embed_crops(islice(shown, _PICTURES_AT_ONCE)), name)):
        yield from zip(names[num_done : num_done + len(embeds)], embeds.astype(np.float16), strict=True)
        num_done += len(embeds)


def finite(embeds: Embeddings, name: str) -> Embeddings:
    """The embeddings. Raises DataError if one is not a finite number."""
    if not np.isfinite(embeds).all():
        raise DataError(f"evaluation set {name}: the embeddings are not finite; train the model again")
    return embeds


def _crop(item: tuple[str, bytes], towers: Towers) -> tuple[str, Crop | str]:
    try:
        return item[0], towers.crop(item[1])
    except DataError as error:
        return item[0], str(error)
