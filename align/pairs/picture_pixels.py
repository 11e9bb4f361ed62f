"""An opened picture -> upright RGB pixels of 8 bits, with as little memory as the decoder allows.

Both this process and its helpers (`align.pairs.picture_process`) decode with these functions, so the pixels are the
same wherever a picture is decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from align.pairs.picture_header import Outline, PictureError, exif_orientation

Image.MAX_IMAGE_PIXELS = None  # its limits warn or fail at sizes of its own; ours count in rows, see `picture.decode`
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # it would use one thread per core for each picture

#: A picture with more pixels than this is converted in strips, and at 1/2, 1/4 or 1/8 where the caller allows it.
_LARGE_PIXELS = 16_000_000
_PIXELS_AT_ONCE = 1_000_000
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
#: EXIF's orientation -> what turns the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Bytes per pixel that Pillow stores, where it is not 4.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}


@dataclass(frozen=True)
class Opened:
    """A picture that its decoder has opened, before any pixel.

    Attributes:
        image: Pillow's.
        outline: of its bytes.
        width_px: as seen, that is, turned upright.
        height_px: the same.
    """

    image: Image.Image
    outline: Outline
    width_px: int
    height_px: int


def open_picture(data: bytes, known: Outline) -> Opened:
    """Opens a picture.

    Args:
        data: the file's bytes.
        known: their outline. The decoder of WebP allocates its canvases here, so check its size before.

    Raises:
        PictureError: not a picture, or its header is broken.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=(known.format,))
    except UnidentifiedImageError:
        raise PictureError("not a picture that we decode") from None
    except Exception as error:  # hostile bytes: a decoder raises errors of any type
        raise PictureError(f"broken header: {one_line(error)}") from error
    width, height = image.size
    if known.format == "AVIF":  # its decoder translates the format's own orientation
        known = Outline("AVIF", exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0")))
    return Opened(image, known, *as_seen((width, height), known.orientation))


def as_seen(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height of a stored picture, turned upright. Raises PictureError if one of them is 0."""
    width, height = size
    if width < 1 or height < 1:
        raise PictureError(f"empty picture: {width} x {height}")
    return (height, width) if orientation >= 5 else (width, height)


def memory_bytes(known: Outline, mode: str, num_pixels: int) -> int:
    """What decoding to RGB takes at its peak, by what the header says.

    Args:
        known: the picture's outline.
        mode: Pillow's mode; not used for WebP and AVIF.
        num_pixels: width times height.
    """
    turned = 0 if known.orientation == 1 else 4
    if known.format == "WEBP":  # two canvases, a copy of the result, and Pillow's own
        return num_pixels * (16 + turned)
    if known.format == "AVIF":  # planes and earlier frames of 16 bits, a copy of the result, and Pillow's own
        return num_pixels * (24 + turned)
    per_pixel = _STORED_BYTES.get(mode, 4)
    if known.num_scans > 1:  # all coefficients, of 16 bits
        per_pixel += 2 * {"L": 1, "CMYK": 4}.get(mode, 3)
    if known.format == "TIFF":  # one strip may be the whole picture, of 16 bits a channel
        per_pixel += 8
    if known.format == "BMP":  # two copies of one byte, if it is run-length coded
        per_pixel += 2
    return num_pixels * (per_pixel + turned + (0 if mode == "RGB" else 4))


def rgb(opened: Opened, hint_px: int | None) -> Image.Image:
    """The pixels of the first frame, upright, with white behind transparent parts.

    Args:
        opened: the picture; its memory is used up.
        hint_px: the caller needs at most this many pixels per side: JPEGs, and large pictures of other formats, may be
            decoded at 1/2, 1/4 or 1/8.

    Raises:
        PictureError: the bytes after the header are broken.
    """
    image = opened.image
    try:
        if hint_px is not None:
            image.draft("RGB", (hint_px, hint_px))
        image.load()
        pixels = _converted(image, hint_px, keeps_canvas=opened.outline.format in ("WEBP", "AVIF"))
        turn = _TURNS.get(opened.outline.orientation)
        if turn is not None:
            pixels = pixels.transpose(turn)
    except MemoryError:
        raise PictureError("takes more memory than its header says") from None
    except Exception as error:  # as above
        raise PictureError(f"broken {opened.outline.format}: {one_line(error)}") from error
    pixels.info = {}
    return pixels


def _converted(image: Image.Image, hint_px: int | None, *, keeps_canvas: bool) -> Image.Image:
    levels = _levels(image)
    width, height = image.size
    large = width * height > _LARGE_PIXELS
    factor = 1 if hint_px is None or not large else _shrinking(min(width, height) // max(1, hint_px))
    if factor == 1 and image.mode == "RGB" and "transparency" not in image.info and (large or not keeps_canvas):
        return image
    if not large:
        return _on_white(levels(image))  # also frees the canvas that some decoders keep with the image
    whole = Image.new("RGB", (math.ceil(width / factor), math.ceil(height / factor)))
    rows = max(1, _PIXELS_AT_ONCE // width // factor) * factor
    for top in range(0, height, rows):
        strip = _on_white(levels(image.crop((0, top, width, min(top + rows, height)))))
        whole.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return whole


def _shrinking(times: int) -> int:
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(1, times))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in _ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _levels(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Scales the picture, or a strip of it, to 8 bits if its pixels have more; Pillow itself would clip them.

    16 bits become the upper 8, as Pillow does with 16-bit colours. Integers of 32 bits and floats define no white:
    white is the first of 1 (floats), 255 and 65,535 that no pixel exceeds. Pictures with negative or larger values are
    stretched from their darkest to their brightest pixel.
    """
    if image.mode not in (*_SIXTEEN_BITS, "I", "F"):
        return lambda part: part
    image.info.pop("transparency", None)  # one of 65,536 greys; the upper 8 bits cannot tell which
    scale, offset = 1 / 256, 0.0
    if image.mode in ("I", "F"):
        low, high = (float(value) for value in image.getextrema())  # type: ignore[arg-type]  # single-band: two numbers
        if not math.isfinite(high - low):
            raise ValueError("its pixels are not finite numbers")
        if low < 0 or high > 65535:
            scale = 255 / (high - low) if high > low else 0.0
            offset = -low * scale
        elif image.mode == "F" and high <= 1:
            scale = 255.0
        elif high <= 255:
            scale = 1.0

    def scaled(part: Image.Image) -> Image.Image:
        wide = part if part.mode in ("I", "F") else part.convert("I")
        return wide.point(lambda value: value * scale + offset).convert("L")

    return scaled


def one_line(error: Exception) -> str:
    """An error's message in one line of at most 200 characters, or its type."""
    return " ".join(str(error).split())[:200] or type(error).__name__
