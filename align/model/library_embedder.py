"""Models of transformers (CLIP, SigLIP, ALIGN) and of open_clip as they are, with their own pixels and tokens.

They are measured and compare pairs; nothing here trains them. A folder is data: no code in it runs, weights come from
safetensors only, and nothing is asked from the web. A picture is decoded as for our models, so that limits, orientation
and transparency are the same; all that follows is the library's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from align.errors import AlignError, ConfigError, DataError, first_line, panics_are_errors
from align.formats.json_file import read_object
from align.formats.model_folder import CONFIG, OPEN_CLIP, WEIGHTS, require_own_files
from align.model.dual_encoder import layers_in
from align.model.embedder import TEXTS_AT_ONCE, Crop, Embedder, Embeddings, batched
from align.pairs.picture import MAX_PIXELS, PictureError, decode

#: transformers' class of each model_type, and how its texts are padded; SigLIP has learned to see the padding.
_CLASSES = {
    "align": ("AlignModel", True),
    "clip": ("CLIPModel", True),
    "siglip": ("SiglipModel", "max_length"),
    "siglip2": ("Siglip2Model", "max_length"),
}
#: The weights that open_clip reads before all others.
_OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class _Library:
    """A model as its library has it: a picture is a batch of one; features are (batch, width)."""

    package: str
    model: nn.Module
    temperature: float
    picture: Callable[[Image.Image], Inputs]
    texts: Callable[[list[str]], Inputs]
    image_features: Callable[..., Tensor]
    text_features: Callable[..., Tensor]


class LibraryEmbedder(Embedder):
    """Embeds with the model of a folder; `kind` is what `library_model` says.

    Raises:
        ConfigError: the library is not installed, or another size of picture than the model's is asked for.
        DataError: a file is missing or does not load.
    """

    def __init__(self, directory: Path, kind: str, image_px: int | None = None) -> None:
        if image_px is not None:
            raise ConfigError(f"{directory}: evaluate.image_px is {image_px}, but a model of {kind} has one size: null")
        require_own_files(directory)
        try:
            with panics_are_errors():
                self._library = _open_clip(directory) if kind == OPEN_CLIP else _transformers(directory, kind)
        except AlignError:
            raise
        except Exception as error:  # noqa: BLE001  # libraries raise what they like
            raise DataError(f"{directory}: this model of {kind} does not load: {first_line(error)}") from None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._library.model.to(self._device)
        self.sees = [kind, version(self._library.package)]
        self.width = self.embed_texts(["a"]).shape[1]

    @property
    def temperature(self) -> float:
        """See `Embedder`."""
        return self._library.temperature

    def crop(self, picture: bytes) -> Crop:
        """See `Embedder`."""
        try:
            return self._library.picture(decode(picture, max_pixels=MAX_PIXELS))
        except PictureError as error:
            raise DataError(f"not an image that can be decoded: {error}") from None

    def _image_rows(self, crops: list[Crop]) -> Tensor:
        inputs = {name: torch.cat([crop[name] for crop in crops]).to(self._device) for name in crops[0]}
        return F.normalize(self._library.image_features(**inputs).float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Iterable[str], part: tuple[int, int] = (0, 1)) -> Embeddings:
        """See `Embedder`."""
        assert part == (0, 1)  # of training
        rows = []
        for batch in batched(texts, TEXTS_AT_ONCE):
            with panics_are_errors():
                inputs = {name: tensor.to(self._device) for name, tensor in self._library.texts(batch).items()}
            rows.append(F.normalize(self._library.text_features(**inputs).float(), dim=-1).cpu().numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self.width), dtype=np.float32)

    def splits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """0 for each text: these models have seen so many that a split word is no strange one."""
        return np.zeros(len(texts))


def _require_depth(directory: Path, name: str) -> None:
    """Raises DataError: a configuration names more layers than there are tensors, which no one builds in a day."""
    tensors = 0
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            tensors += len(opened.keys())
    if tensors == 0:
        raise DataError(f"{directory}: has no {WEIGHTS}; other files of weights are not read")
    if (named := layers_in(read_object(directory / name))) > tensors:
        raise DataError(f"{directory / name}: {named} layers, but the weights have {tensors} tensors")


def _transformers(directory: Path, kind: str) -> _Library:
    import transformers as library

    _require_depth(directory, CONFIG)
    transformers: Any = library  # mostly untyped
    transformers.logging.disable_progress_bar()
    name, padding = _CLASSES[kind]
    known: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    made, found = getattr(transformers, name).from_pretrained(
        directory, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **known
    )
    if missing := sorted(name for name in found["missing_keys"] if ".pooler." not in name):  # no embedding needs it
        raise DataError(f"{directory}: its weights lack {len(missing)} tensors of {name}, such as {missing[0]}")
    model = made.eval()
    processor = transformers.AutoProcessor.from_pretrained(directory, **known)
    if not (hasattr(processor, "image_processor") and hasattr(processor, "tokenizer")):
        raise DataError(f"{directory}: has no preprocessor_config.json or no tokenizer; copy them from its publisher")
    most = min(model.config.text_config.max_position_embeddings, processor.tokenizer.model_max_length)
    words = {"padding": padding, "truncation": True, "max_length": most, "return_tensors": "pt"}
    return _Library(
        package="transformers",
        model=model,
        temperature=float(model.temperature.detach() if kind == "align" else (-model.logit_scale.detach()).exp()),
        picture=lambda picture: dict(processor.image_processor(images=picture, return_tensors="pt")),
        texts=lambda texts: dict(processor(text=texts, **words)),
        image_features=lambda **inputs: model.get_image_features(**inputs).pooler_output,
        text_features=lambda **inputs: model.get_text_features(**inputs).pooler_output,
    )


def _open_clip(directory: Path) -> _Library:
    config = read_object(directory / f"{OPEN_CLIP}_config.json")
    if "trust_remote_code" in json.dumps(config):  # which open_clip would pass on to transformers
        raise DataError(f"{directory}: its configuration has code of the folder run, which is never done")
    try:
        import open_clip
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{directory}: a model of open_clip needs {error.name}: pip install open_clip_torch==3.3.0"
        ) from None
    if not any((directory / name).is_file() for name in _OPEN_CLIP_WEIGHTS):
        raise DataError(f"{directory}: has no {_OPEN_CLIP_WEIGHTS[0]}; other files of weights are not read")
    _require_depth(directory, f"{OPEN_CLIP}_config.json")
    source = f"local-dir:{directory}"
    model, transform = open_clip.create_model_from_pretrained(source)
    tokenizer = open_clip.get_tokenizer(source)
    return _Library(
        package="open_clip_torch",
        model=model.eval(),
        temperature=float((-model.logit_scale.detach()).exp()),
        picture=lambda picture: {"image": transform(picture)[None]},
        texts=lambda texts: {"text": tokenizer(texts)},
        image_features=model.encode_image,
        text_features=model.encode_text,
    )
