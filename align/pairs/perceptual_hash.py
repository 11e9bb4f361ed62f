"""The size of an image, a 64-bit perceptual hash of its pixels, and a small thumbnail.

The hash holds the signs of the lowest 8 x 8 frequencies of a 32 x 32 grey thumbnail: equal pictures, re-encoded or
resized, differ in few of its bits.
"""

from __future__ import annotations

import ast
from dataclasses import astuple, dataclass

import numpy as np
from PIL import Image

from align.pairs.picture import PictureError, decode, read_header

#: Side of the colour thumbnail.
THUMBNAIL_PX = 16
_HASH_PX = 32
_HASH_SIDE = 8
#: A JPEG is decoded no larger than this, which is enough for both.
_HINT_PX = 128


@dataclass(frozen=True)
class ImageSignals:
    """What is computed from one image's bytes.

    Attributes:
        width_px: as stored; None if not even the header is readable.
        height_px: as width_px.
        phash: 64-bit perceptual hash; None if the picture does not decode.
        thumbnail: 16 x 16 x 3 uint8 as bytes; None if the picture does not decode.
    """

    width_px: int | None
    height_px: int | None
    phash: int | None
    thumbnail: bytes | None


def image_signals(data: bytes, max_pixels: int) -> ImageSignals:
    """Decodes an image and computes its signals. Never raises for bad bytes."""
    try:
        header = read_header(data)
    except PictureError:
        return ImageSignals(None, None, None, None)
    try:
        image = decode(data, max_pixels=max_pixels, hint_px=_HINT_PX)
    except PictureError:
        return ImageSignals(header.width_px, header.height_px, None, None)
    small = image.resize((2 * _HASH_PX, 2 * _HASH_PX), Image.Resampling.BILINEAR)
    thumbnail = small.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BILINEAR)
    return ImageSignals(header.width_px, header.height_px, perceptual_hash(small), thumbnail.tobytes())


def to_bytes(signals: ImageSignals) -> bytes:
    """The signals as bytes, to be stored."""
    return repr(astuple(signals)).encode()


def from_bytes(data: bytes) -> ImageSignals:
    """The reverse of `to_bytes`."""
    return ImageSignals(*ast.literal_eval(data.decode()))


_DCT = np.cos(np.pi * np.arange(_HASH_SIDE)[:, None] * (2 * np.arange(_HASH_PX)[None, :] + 1) / (2 * _HASH_PX))


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: which of the lowest 8 x 8 DCT frequencies of the grey picture are above their median (DC included)."""
    grey = image.convert("L").resize((_HASH_PX, _HASH_PX), Image.Resampling.BILINEAR)
    # rounded, since the last bit of a float may differ on another machine
    frequencies = np.round(_DCT @ np.asarray(grey, dtype=np.float64) @ _DCT.T, 3).ravel()
    bits = frequencies > np.median(frequencies)
    return int(np.packbits(bits).view(">u8")[0])
