"""A picture's bytes: its size from the header, and decoding within limits. The one decoder of the project.

Decoding of any bytes stays within bounds, which are checked by the header before a decoder allocates anything:

* pixels: the caller sets `max_pixels`;
* memory: at most 11 bytes for each pixel of that limit. All decodings of this process together stay within a budget;
  those that do not fit wait, and one that is larger than the whole budget runs alone;
* work: a JPEG has at most 100 scans (`picture_header.MAX_SCANS`).

Ordinary JPEGs, PNGs, GIFs and WebPs are decoded in this process, everything else in helpers that may be stopped
(`align.pairs.picture_process`). The pixels are the same. Every picture comes out upright, as its EXIF orientation says.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from align.pairs.picture_header import FORMATS, Outline, PictureError, outline
from align.pairs.picture_pixels import as_seen, memory_bytes, open_picture, rgb
from align.pairs.picture_process import helper

__all__ = ["FORMATS", "MAX_PIXELS", "PictureError", "PictureHeader", "decode", "decode_pixels", "is_finished_jpeg",
           "read_header", "shrink", "small", "thumbnail"]  # fmt: skip

#: The most pixels of a picture, where no parameter says another number.
MAX_PIXELS = 100_000_000
#: A transparent picture takes 8 bytes a pixel, a progressive one 10; WebP takes 16, so it may have two thirds as many.
_MAX_BYTES_PER_PIXEL = 11
#: Bytes that the decodings of a process may take together.
_BUDGET_BYTES = 1 << 29
#: Smaller decodings are not counted: most pictures are that small, and counting takes a tenth of a thumbnail's time.
_COUNTED_BYTES = 4 << 20
#: Formats that are opened in this process: on opening, their decoders read only the header.
_OPENED_HERE = ("JPEG", "PNG", "GIF")
#: Pixels times scans that are decoded in this process, half a second at most; more takes a helper, which adds little
#: then. A helper would double the time of small pictures on a busy machine.
_MOST_WORK_HERE = {"JPEG": 32_000_000, "PNG": 32_000_000, "GIF": 32_000_000, "WEBP": 8_000_000}
_MOST_INTRICATE_PIXELS_HERE = 500_000
#: The longest side that libjpeg writes.
_MAX_JPEG_SIDE_PX = 65_500


@dataclass(frozen=True)
class PictureHeader:
    """The header of a picture.

    Attributes:
        format: Pillow's name, such as `PNG`; from the bytes, not from what a server or a file name claims.
        width_px: at least 1; as seen, that is, turned upright.
        height_px: the same.
    """

    format: str
    width_px: int
    height_px: int


def read_header(data: bytes) -> PictureHeader:
    """Format and size without decoding. Raises PictureError if the bytes are not a picture."""
    known = outline(data)
    if known.format in _OPENED_HERE:
        opened = open_picture(data, known)
        return PictureHeader(opened.image.format or "", opened.width_px, opened.height_px)
    if known.size is not None:
        return PictureHeader(known.format, *as_seen(known.size, known.orientation))
    with helper() as process:
        return PictureHeader(*process.size(data)[:3])


def decode(data: bytes, *, max_pixels: int, hint_px: int | None = None) -> Image.Image:
    """Decodes the first frame to RGB, upright, with white behind transparent parts.

    Args:
        data: the file's bytes.
        max_pixels: larger pictures are refused, by the size in their header.
        hint_px: the caller needs at most this many pixels per side, so a JPEG may be decoded at 1/2, 1/4 or 1/8, and so
            may a picture of another format with more than 16 megapixels.

    Raises:
        PictureError: not a picture, too large, or broken after its header.
    """
    known = outline(data)
    opened = open_picture(data, known) if known.format in _OPENED_HERE else None
    if opened is not None:
        num_pixels = _checked((opened.width_px, opened.height_px), max_pixels)
        memory = memory_bytes(known, opened.image.mode, num_pixels)
    elif known.size is not None:
        num_pixels = _checked(known.size, max_pixels)
        memory = memory_bytes(known, "", num_pixels)
    else:
        with helper() as process:
            _, width, height, memory = process.size(data)
        num_pixels = _checked((width, height), max_pixels)
    with _share(_affordable(memory, max_pixels)):
        if _is_ordinary(known, num_pixels):
            return rgb(opened or open_picture(data, known), hint_px)
        with helper() as process:
            return process.pixels(data, memory, hint_px)


def _is_ordinary(known: Outline, num_pixels: int) -> bool:
    most = _MOST_INTRICATE_PIXELS_HERE if known.intricate else _MOST_WORK_HERE.get(known.format, 0)
    return num_pixels * known.num_scans <= most


def _checked(size: tuple[int, int], max_pixels: int) -> int:
    width, height = size
    if width * height > max_pixels:
        raise PictureError(f"too many pixels: {width} x {height}")
    return width * height


def _affordable(memory: int, max_pixels: int) -> int:
    most = _MAX_BYTES_PER_PIXEL * max_pixels
    if memory > most:
        raise PictureError(
            f"too much memory: decoding takes {memory // 10**6:,} MB, and at most {most // 10**6:,} MB are used"
        )
    return memory


def decode_pixels(
    data: bytes, side_px: int, *, max_pixels: int, scratch: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decodes to an array for a caller that resizes it to `side_px` square. Ordinary JPEGs take a faster decoder here.

    Args:
        data: the file's bytes.
        side_px: JPEGs are decoded at the smallest 1/2^k scale whose sides are not below this.
        max_pixels: as for `decode`.
        scratch: memory to decode JPEGs into, if they fit.

    Returns:
        (H, W, 3) uint8 RGB, writable, possibly a view of `scratch`.

    Raises:
        PictureError: as `decode`.
    """
    known = outline(data)
    if known.format == "JPEG" and known.orientation == 1 and known.size is not None:
        num_pixels = known.size[0] * known.size[1]
        if num_pixels <= max_pixels and _is_ordinary(known, num_pixels):
            pixels = _decode_jpeg(data, known, side_px, scratch)
            if pixels is not None:
                return pixels
    return np.array(decode(data, max_pixels=max_pixels, hint_px=side_px))  # a copy, because torch needs it writable


def _decode_jpeg(
    data: bytes, known: Outline, side_px: int, scratch: NDArray[np.uint8] | None
) -> NDArray[np.uint8] | None:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "RGB", "Gray") or (width, height) != known.size:
            return None
        fits = scratch is not None and 3 * height * width <= scratch.size
        with _share(memory_bytes(known, "RGB", height * width)):
            decoded: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data, "RGB", min_height=side_px, min_width=side_px, buffer=scratch if fits else None
            )
    except ValueError:  # Pillow accepts more broken files
        return None
    return decoded


def is_finished_jpeg(data: bytes, side_px: int) -> bool:
    """Whether the bytes are an upright colour JPEG of exactly this size. Whether it decodes is not tried."""
    try:
        known = outline(data)
        if known.format != "JPEG" or known.orientation != 1 or known.size != (side_px, side_px):
            return False
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except (PictureError, ValueError):
        return False
    return bool(height == width == side_px and colours == "YCbCr")


def shrink(data: bytes, short_side_px: int, quality: int, max_pixels: int) -> tuple[bytes, int, int]:
    """A JPEG whose shorter side is `short_side_px`, with the same aspect, upright; (bytes, width, height).

    A JPEG is decoded at 1/2, 1/4 or 1/8 if that is still as large as the result. Raises PictureError as `decode`.
    """
    header = read_header(data)
    scale = short_side_px / min(header.width_px, header.height_px)
    size = (max(1, round(header.width_px * scale)), max(1, round(header.height_px * scale)))
    if max(size) > _MAX_JPEG_SIDE_PX:
        raise PictureError(
            f"too long: {size[0]} x {size[1]} once shrunk; a JPEG has at most {_MAX_JPEG_SIDE_PX:,} a side"
        )
    image = decode(data, max_pixels=max_pixels, hint_px=max(size))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")), *size


def small(data: bytes, side_px: int) -> Image.Image:
    """The picture at no more than `side_px` per side; aspect kept. Raises PictureError as `decode`."""
    image = decode(data, max_pixels=MAX_PIXELS, hint_px=2 * side_px)
    image.thumbnail((side_px, side_px))
    return image


def thumbnail(data: bytes, side_px: int, *, quality: int = 85, optimize: bool = False) -> bytes:
    """`small`, as a JPEG, by default one for a page. Raises PictureError as `decode`."""
    buffer = io.BytesIO()
    small(data, side_px).save(buffer, "JPEG", quality=quality, optimize=optimize)
    return buffer.getvalue()


class _Budget:
    """Bytes that the threads of this process share; first come, first served."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._turn, self._freed = threading.Lock(), threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes are free, or all of them if it is more."""
        size = min(size, self._total)
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._used + size <= self._total)
            self._used += size
        try:
            yield
        finally:
            with self._freed:
                self._used -= size
                self._freed.notify_all()


_budget = _Budget(_BUDGET_BYTES)


_uncounted = nullcontext()


def _share(size: int) -> AbstractContextManager[None]:
    return _uncounted if size < _COUNTED_BYTES else _budget.hold(size)


def _new_budget() -> None:
    global _budget
    _budget = _Budget(_BUDGET_BYTES)


os.register_at_fork(after_in_child=_new_budget)  # other threads' shares end with the fork
