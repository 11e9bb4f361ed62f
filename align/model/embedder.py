"""A trained model with its tokenizer: image bytes and texts -> embeddings, with evaluation's preprocessing.

`Embedder.load` reads a folder of ours; of transformers or of open_clip it gives `align.model.library_embedder`.

Batch sizes here change speed only: in evaluation every sample's embedding depends on that sample alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from align.errors import DataError
from align.formats.model_folder import library_model, tokenizer_of
from align.model.dual_encoder import DualEncoder, load_model
from align.model.library_towers import require_size
from align.model.preprocess import centre_crop, decode, to_pixels
from align.model.tokenizer import TextTokenizer, pad

T = TypeVar("T")

IMAGES_AT_ONCE = 64
TEXTS_AT_ONCE = 64
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")

#: (number, width) float32, L2-normalised rows.
Embeddings = NDArray[np.float32]
#: What a model is shown of a picture: (image_px, image_px, 3) uint8 RGB of ours; of a library's model its own inputs.
Crop = Any


class Encoder(Protocol):
    """Anything that maps images and texts to L2-normalised rows of one width."""

    def embed_images(self, images: Iterable[bytes]) -> Embeddings:
        """(num_images, width) float32, L2-normalised rows, from encoded image files."""

    def embed_texts(self, texts: Iterable[str]) -> Embeddings:
        """(num_texts, width) float32, L2-normalised rows."""


class SearchEncoder(Encoder, Protocol):
    """Also says how well it knows the words of a text, by which search says how sure it is."""

    def splits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(num_texts,): see `Embedder.splits`."""


class Embedder:
    """Embeds images and texts.

    Args:
        model: where it is to compute.
        tokenizer: of the model.
        image_px: another picture size than the model's, for which no weight changes; None: the model's.

    Attributes:
        width: length of an embedding.
        sees: what decides an embedding, beside code and the model's files.
    """

    def __init__(self, model: DualEncoder, tokenizer: TextTokenizer, image_px: int | None = None) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._device = next(model.parameters()).device
        self.config = model.config
        if image_px is not None:
            resize_px = round(model.config.resize_px * image_px / model.config.image_px)
            self.config = model.config.model_copy(update={"image_px": image_px, "resize_px": resize_px})
            require_size(model.config.model_copy(update={"image_px": image_px}))
        self.width = model.config.embed_width
        self.sees: list[Any] = [self.config.image_px, self.config.resize_px, *model.config.versions]

    @property
    def temperature(self) -> float:
        """The number by which the model divides its cosine."""
        return float(self._model.temperature.detach())

    @staticmethod
    def load(directory: Path, image_px: int | None = None) -> Embedder:
        """Reads a model folder, also of transformers or open_clip; uses a GPU if there is one.

        Raises as `load_with_tokenizer`, or as `LibraryEmbedder`.
        """
        if (kind := library_model(directory)) is not None:
            from align.model.library_embedder import LibraryEmbedder  # its libraries take a second to import

            return LibraryEmbedder(directory, kind, image_px)
        model, tokenizer = load_with_tokenizer(directory)
        return Embedder(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, image_px)

    def crop(self, picture: bytes) -> Crop:
        """An image file's bytes -> what the model is shown of it; threads share this.

        Raises:
            DataError: the picture does not decode.
        """
        return centre_crop(decode(picture, self.config.resize_px), self.config.image_px)

    def embed_images(self, images: Iterable[bytes]) -> NDArray[np.float32]:
        """Image files' bytes -> (N, width) float32, L2-normalised.

        Raises:
            DataError: an image cannot be decoded.
        """
        return self.embed_pixels(map(self.crop, images))

    @torch.inference_mode()
    def embed_pixels(self, crops: Iterable[Crop]) -> NDArray[np.float32]:
        """Crops -> (N, width) float32, L2-normalised."""
        parts = [self._image_rows(batch).cpu().numpy() for batch in batched(crops, IMAGES_AT_ONCE)]
        return np.concatenate(parts) if parts else np.zeros((0, self.width), dtype=np.float32)

    def _image_rows(self, crops: list[Crop]) -> Tensor:
        return self._model.encode_image(to_pixels(np.stack(crops)).to(self._device))

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
        for rows in islice(batched(by_length, TEXTS_AT_ONCE), part[0], None, part[1]):
            input_ids, mask = pad([ids[row] for row in rows], self._tokenizer.pad_id)
            embeds[rows] = self._model.encode_text(input_ids.to(self._device), mask.to(self._device)).cpu().numpy()
        return embeds

    def splits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,): the logarithm of the number of tokens for each word or mark of a text; 0: all are known whole."""
        none, *pieces = map(len, self._tokenizer.ids(["", *texts]))  # what begins and ends a text is no piece of it
        words = [len(_WORD_OR_MARK.findall(text)) for text in texts]
        return np.log(np.maximum(np.array(pieces, np.float64) - none, 1) / np.maximum(words, 1))


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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of so many items; the last one may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
