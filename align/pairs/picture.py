"""A picture's bytes: its size from the header, and decoding within a limit.

Pillow warns and fails at limits of its own, which are too low for a raw archive and are counted nowhere. Ours replace
them: the caller sets `max_pixels`, and nothing is decoded before the header's size is known to be within it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

Image.MAX_IMAGE_PIXELS = None  # see above: in this project nothing is decoded without `max_pixels`

#: Formats that the web serves and Pillow itself decodes. No EPS, WMF and the like, which start other programs.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "AVIF", "PPM")


class PictureError(Exception):
    """We cannot decode these bytes as a picture; the message says why. Callers record it in a row."""


@dataclass(frozen=True)
class PictureHeader:
    """The header of a picture.

    Attributes:
        format: Pillow's name, such as `PNG`; from the bytes, not from what a server or a file name claims.
        width_px: at least 1.
        height_px: at least 1.
    """

    format: str
    width_px: int
    height_px: int


def read_header(data: bytes) -> PictureHeader:
    """Format and size without decoding. Raises PictureError if the bytes are not a picture."""
    with _open(data) as image:
        return _header(image)


def decode(data: bytes, *, max_pixels: int, hint_px: int | None = None) -> Image.Image:
    """Decodes the first frame to RGB, with white behind transparent parts.

    Args:
        data: the file's bytes.
        max_pixels: larger pictures are refused, by the size in their header.
        hint_px: the caller needs at most this many pixels per side, so a JPEG may be decoded at 1/2, 1/4 or 1/8.

    Raises:
        PictureError: not a picture, too large, or broken after its header.
    """
    with _open(data) as image:
        header = _header(image)
        if header.width_px * header.height_px > max_pixels:
            raise PictureError(f"too many pixels: {header.width_px} x {header.height_px}")
        try:
            if hint_px is not None:
                image.draft("RGB", (hint_px, hint_px))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
        except Exception as error:  # decoders raise errors of any type for hostile bytes
            raise PictureError(f"broken {header.format}: {_one_line(error)}") from error


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError("not a picture that we decode") from None
    except Exception as error:  # as above: hostile headers
        raise PictureError(f"broken header: {_one_line(error)}") from error


def _header(image: Image.Image) -> PictureHeader:
    width, height = image.size
    if width < 1 or height < 1:
        raise PictureError(f"empty picture: {width} x {height}")
    return PictureHeader(image.format or "", width, height)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def shrink(data: bytes, short_side_px: int, quality: int, max_pixels: int) -> tuple[bytes, int, int]:
    """A JPEG whose shorter side is `short_side_px`, with the same aspect; (bytes, width, height).

    A JPEG is decoded at 1/2, 1/4 or 1/8 if that is still as large as the result. Raises PictureError as `decode`.
    """
    header = read_header(data)
    scale = short_side_px / min(header.width_px, header.height_px)
    size = (max(1, round(header.width_px * scale)), max(1, round(header.height_px * scale)))
    image = decode(data, max_pixels=max_pixels, hint_px=max(size))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")), *size
