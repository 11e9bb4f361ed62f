"""Pictures as other tools hold them -> crops by our own preprocessing.

Where a tool still has a file's bytes, they are taken: only then are the pixels those of `align evaluate`. A picture
that the tool decoded is nearly the same: we decode large JPEGs at a half or a quarter of their size, which differs by
some grey levels, and what lies behind transparent pixels is lost if the tool made them opaque.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from align.config.model import ModelConfig
from align.errors import DataError
from align.model.preprocess import centre_crop, decode

#: Modes that PNG holds; others become RGB first.
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def crop(picture: Any, config: ModelConfig) -> NDArray[np.uint8]:
    """Evaluation's crop of a picture.

    Args:
        picture: a file's bytes, a Pillow image, or `datasets`' undecoded image (a dict with `bytes` or `path`).
        config: of the model.

    Returns:
        (image_px, image_px, 3) uint8 RGB.

    Raises:
        DataError: it does not decode, or it is none of these.
    """
    return centre_crop(decode(_file(picture), config.resize_px), config.image_px)


def _file(picture: Any) -> bytes:
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
