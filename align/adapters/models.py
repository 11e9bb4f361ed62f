"""What other tools hold, as ours: a model by its name (a folder, or a version of the registry), pictures as crops.

Where a tool still has a file's bytes, they are taken: only then are the pixels those of `align evaluate`. A picture
that the tool decoded is nearly the same: we decode large JPEGs at a half or a quarter of their size, which differs by
some grey levels, and what lies behind transparent pixels is lost if the tool made them opaque.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from align.errors import DataError
from align.formats.model_folder import CONFIG, model_digest
from align.model.dual_encoder import DualEncoder
from align.model.embedder import load_with_tokenizer
from align.model.tokenizer import TextTokenizer
from align.services.tracking.model_files import model_files

#: A name is a part of file names; two models of one name have different digests.
_LONGEST = 60
#: The file that every MLflow model has.
_MLMODEL = "MLmodel"


@dataclass(frozen=True)
class NamedModel:
    """A model that another tool measures.

    Attributes:
        model: in evaluation mode, on the CPU.
        tokenizer: the one that it was trained with.
        name: for the tool's tables and file names: letters, digits, dots, dashes and underscores.
        digest: hex sha256 of what decides an embedding. A tool that keeps results by it never shows those of the model
            that lay in this folder before.
    """

    model: DualEncoder
    tokenizer: TextTokenizer
    name: str
    digest: str


def open_model(source: str | Path) -> NamedModel:
    """Loads a model.

    Args:
        source: a model folder, a packaged model's folder, or a version of the registry that MLFLOW_TRACKING_URI names:
            `models:/align@champion`, `models:/align/3`.

    Raises:
        DataError: there is no such model, or it is damaged.
        FormatError: it is a folder of transformers' AlignModel, which `align import_model` reads; or of another
            version.
        ServiceError, RefusedError: MLflow cannot be reached, or refuses.
    """
    with model_files(str(source)) as folder:
        directory = _model_folder(folder)
        model, tokenizer = load_with_tokenizer(directory)
        return NamedModel(model, tokenizer, _slug(str(source)), model_digest(directory))


def _model_folder(folder: Path) -> Path:
    """The model folder itself; of a packaged model, the one among its artifacts."""
    if not (folder / _MLMODEL).is_file():
        return folder
    held = [path.parent for path in sorted(folder.glob(f"artifacts/*/{CONFIG}"))]
    if len(held) != 1:
        raise DataError(f"{folder}: {len(held)} model folders among the artifacts of this MLflow model, not one")
    return held[0]


def _slug(source: str) -> str:
    parts = [source.removeprefix("models:/")] if source.startswith("models:") else Path(source).resolve().parts[-2:]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.")[:_LONGEST] or "model"


#: Modes that PNG holds; others become RGB first.
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def file_of(picture: Any) -> bytes:
    """A picture's file: its bytes, a Pillow image, or `datasets`' undecoded image. Raises DataError for all else."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, Image.Image):
        return _png(picture)
    if isinstance(picture, dict) and isinstance(picture.get("bytes"), bytes):
        return bytes(picture["bytes"])
    if isinstance(picture, dict) and isinstance(picture.get("path"), str):
        try:
            with open(picture["path"], "rb") as file:  # noqa: PTH123 - a str, as `datasets` gives it
                return file.read()
        except OSError as error:
            raise DataError(f"{picture['path']}: {error.strerror or error}") from None
    raise DataError(f"not a picture but {type(picture).__name__}")


def _png(picture: Image.Image) -> bytes:
    """The same pixels as a file, so that one decoder treats limits, orientation and transparency."""
    buffer = io.BytesIO()
    held = picture if picture.mode in _PNG_MODES else picture.convert("RGB")
    held.save(buffer, "PNG", compress_level=0, exif=picture.getexif())
    return buffer.getvalue()
