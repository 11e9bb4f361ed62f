"""Renders or reads each picture once, as a *master* on white; encodes it; and computes what compares pictures.

Masters are kept as lossless files in a cache folder: rendering takes minutes, and every later choice needs the pixels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from emoji import RENDERED_PX
from items import Item
from PIL import Image

MASTER_SHORT_PX = 320
"""Short side of the largest picture that the archive holds; smaller pictures stay at their native size."""
_BLANK_STD = 3.0
"""Standard deviation of grey values below which a picture shows nothing (white drawings on white)."""
_PROCESSES = 2


@dataclass(frozen=True)
class Encoding:
    """How a picture is stored: format, short side in pixels, and quality (JPEG, WebP) or number of colours (PNG)."""

    format: str
    short_px: int
    quality: int

    @property
    def suffix(self) -> str:
        """The file name's suffix, without the dot."""
        return {"jpeg": "jpg", "png": "png", "webp": "webp"}[self.format]

    @property
    def content_type(self) -> str:
        """Media type."""
        return f"image/{self.format}"


EVALUATION_ENCODING = Encoding("jpeg", 224, 73)
"""For every evaluation image: 224 px suits a small model, and keeps the three sets near 25 MB."""


@dataclass(frozen=True)
class Look:
    """What a comparison needs: a 64-bit perceptual hash, and whether the picture is blank."""

    phash: int
    blank: bool


def masters(items: Iterable[Item], cache: Path) -> dict[str, Look]:
    """Renders every picture that the cache lacks; returns the look of each, by ``Item.picture``."""
    cache.mkdir(parents=True, exist_ok=True)
    wanted = {item.picture: item for item in items}
    with ProcessPoolExecutor(_PROCESSES) as pool:
        looks = pool.map(_master, wanted.values(), [cache] * len(wanted), chunksize=64)
        return dict(zip(wanted, looks, strict=True))


def encode_all(wanted: Mapping[tuple[str, Encoding], Item], cache: Path) -> dict[tuple[str, Encoding], bytes]:
    """Bytes of every (picture, encoding)."""
    keys = sorted(wanted, key=lambda key: (key[0], key[1].format, key[1].short_px, key[1].quality))
    with ProcessPoolExecutor(_PROCESSES) as pool:
        encoded = pool.map(_encode, [k[0] for k in keys], [k[1] for k in keys], [cache] * len(keys), chunksize=64)
        return dict(zip(keys, encoded, strict=True))


def _path(picture: str, cache: Path) -> Path:
    return cache / (picture.replace("/", "__") + ".png")


def _master(item: Item, cache: Path) -> Look:
    path = _path(item.picture, cache)
    if not path.exists():
        image = _from_svg(item.svg) if item.svg else _from_png(item)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        image.save(partial, "PNG", compress_level=1)
        partial.replace(path)
    with Image.open(path) as image:
        return _look(image)


def _from_svg(svg: str) -> Image.Image:
    import cairosvg  # type: ignore[import-untyped]  # needed to rebuild the sample only

    try:
        png = cairosvg.svg2png(
            bytestring=svg.encode(), output_width=RENDERED_PX, output_height=RENDERED_PX, background_color="white"
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        # A few drawings use features that the renderer lacks; a white picture is *blank* and is not used.
        return Image.new("RGB", (RENDERED_PX, RENDERED_PX), "white")
    return Image.open(io.BytesIO(png)).convert("RGB")


def _from_png(item: Item) -> Image.Image:
    assert item.png is not None
    # The largest drawings have more than 200 megapixels: PIL's size guard is off (the package is trusted), and the
    # picture is first reduced by a whole factor.
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(item.png) as image:
        image.load()
        factor = min(image.size) // (2 * MASTER_SHORT_PX)
        rgba = image.convert("RGBA").reduce(factor) if factor > 1 else image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return _shrunk(Image.alpha_composite(white, rgba).convert("RGB"), MASTER_SHORT_PX)


def _shrunk(image: Image.Image, short_px: int) -> Image.Image:
    """The image with at most this short side; never enlarged."""
    scale = short_px / min(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _encode(picture: str, encoding: Encoding, cache: Path) -> bytes:
    with Image.open(_path(picture, cache)) as master:
        image = _shrunk(master.convert("RGB"), encoding.short_px)
    out = io.BytesIO()
    if encoding.format == "png":
        image.quantize(encoding.quality, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    elif encoding.format == "webp":
        image.save(out, "WEBP", quality=encoding.quality, method=6)
    else:
        image.save(out, "JPEG", quality=encoding.quality, optimize=True, progressive=True)
    return out.getvalue()


def _look(image: Image.Image) -> Look:
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = (_DCT @ grey @ _DCT.T)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    phash = int.from_bytes(np.packbits(bits).tobytes(), "big")
    return Look(phash=phash, blank=bool(grey.std() < _BLANK_STD))


def _dct_matrix(size: int) -> np.ndarray:
    k = np.arange(size)
    return np.cos(np.pi * k[:, None] * (2 * k[None, :] + 1) / (2 * size))


_DCT = _dct_matrix(32)
