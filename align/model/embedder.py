"""A trained model with its tokenizer: image bytes and texts -> embeddings, with evaluation's preprocessing.

Batch sizes here change speed only: in evaluation every sample's embedding depends on that sample alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from align.errors import DataError
from align.formats.model_folder import tokenizer_of
from align.model.dual_encoder import DualEncoder, load_model
from align.model.preprocess import centre_crop, decode, to_pixels
from align.model.tokenizer import TextTokenizer, pad

T = TypeVar("T")

IMAGE_BATCH = 64
TEXT_BATCH = 64

#: (number, width) float32, L2-normalised rows.
Embeddings = NDArray[np.float32]


class Encoder(Protocol):
    """Anything that maps images and texts to L2-normalised rows of one width."""

    def embed_images(self, images: Iterable[bytes]) -> Embeddings:
        """(num_images, width) float32, L2-normalised rows, from encoded image files."""

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """(num_texts, width) float32, L2-normalised rows."""


class Embedder:
    """Embeds images and texts.

    Attributes:
        width: length of an embedding.
    """

    def __init__(self, model: DualEncoder, tokenizer: TextTokenizer) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._device = next(model.parameters()).device
        self.config = model.config
        self.width = model.config.embed_width

    @property
    def temperature(self) -> float:
        """The number by which the model divides its cosine."""
        return float(self._model.temperature.detach())

    @classmethod
    def load(cls, directory: Path) -> Embedder:
        """Reads a model folder; uses a GPU if there is one. Raises as `load_with_tokenizer`."""
        model, tokenizer = load_with_tokenizer(directory)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)

    def embed_images(self, images: Iterable[bytes]) -> NDArray[np.float32]:
        """Image files' bytes -> (N, width) float32, L2-normalised.

        Raises:
            DataError: an image cannot be decoded.
        """
        decoded = (centre_crop(decode(data, self.config.resize_px), self.config.image_px) for data in images)
        return self.embed_pixels(decoded)

    @torch.inference_mode()
    def embed_pixels(self, crops: Iterable[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Crops (image_px, image_px, 3) RGB -> (N, width) float32, L2-normalised."""
        parts = []
        for batch in _batched(crops, IMAGE_BATCH):
            pixels = to_pixels(np.stack(batch)).to(self._device)
            parts.append(self._model.encode_image(pixels).cpu().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)

    @torch.inference_mode()
    def embed_texts(self, texts: Iterable[str], part: tuple[int, int] = (0, 1)) -> NDArray[np.float32]:
        """Texts -> (N, width) float32, L2-normalised. Texts of similar length are embedded together.

        Args:
            texts: any number.
            part: (rank, number of ranks): only this rank's batches are embedded; the rows of others are 0.
        """
        ids = self._tokenizer.ids(list(texts))
        embeds = np.zeros((len(ids), self.width), dtype=np.float32)
        by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        for rows in islice(_batched(by_length, TEXT_BATCH), part[0], None, part[1]):
            input_ids, mask = pad([ids[row] for row in rows], self._tokenizer.pad_id)
            embeds[rows] = self._model.encode_text(input_ids.to(self._device), mask.to(self._device)).cpu().numpy()
        return embeds


def load_with_tokenizer(directory: Path) -> tuple[DualEncoder, TextTokenizer]:
    """Reads a model folder: the model in evaluation mode on the CPU, and its tokenizer.

    Raises:
        DataError: a file is missing or damaged, or model and tokenizer do not belong together.
        FormatError: another schema version, or a folder of transformers' AlignModel.
    """
    model = load_model(directory)
    folder = tokenizer_of(directory)
    tokenizer = TextTokenizer.load(folder, model.config.max_tokens)
    if tokenizer.vocab_size != model.vocab_size:
        raise DataError(
            f"{folder} has {tokenizer.vocab_size} tokens, the model in {directory} was trained with "
            f"{model.vocab_size}: not the tokenizer it was trained with"
        )
    return model, tokenizer


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
