"""Evaluation preprocessing: ours against Pillow, which decodes whole, resizes whole, then crops."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from align.config.model import ModelConfig
from align.errors import DataError
from align.model.preprocess import centre_crop, decode
from benchmarks.measure import Comparison, compare, interleaved
from benchmarks.world import World

NUM_IMAGES = 200
REPETITIONS = 5
#: Resized to, cropped to: the paper's (section 4.1).
PAPER_PX = (346, 289)


def ours(data: bytes, resize_px: int, crop_px: int) -> NDArray[np.uint8]:
    return centre_crop(decode(data, resize_px), crop_px)


def pillow(data: bytes, resize_px: int, crop_px: int) -> NDArray[np.uint8]:
    """What a torchvision recipe on Pillow does; no care for transparency, which saves it some work."""
    with Image.open(io.BytesIO(data)) as image:
        whole = image.convert("RGB").resize((resize_px, resize_px), Image.Resampling.BILINEAR)
    edge = (resize_px - crop_px) // 2
    return np.asarray(whole.crop((edge, edge, edge + crop_px, edge + crop_px)))


def run(world: World) -> list[Comparison]:
    model = world.params.section(ModelConfig)
    images = list(world.raw_images())
    jpegs = [data for data in images if data[:2] == b"\xff\xd8"]
    rows = []
    for name, of_format in (("JPEG", jpegs), ("all formats", images)):
        some = [data for data in of_format[:: max(1, len(of_format) // NUM_IMAGES)] if _readable(data)]
        for resize_px, crop_px in ((model.resize_px, model.image_px), PAPER_PX):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow about transparency in palettes
                seconds = interleaved(
                    lambda some=some, to=(resize_px, crop_px): [ours(data, *to) for data in some],
                    lambda some=some, to=(resize_px, crop_px): [pillow(data, *to) for data in some],
                    REPETITIONS,
                )
            rows.append(
                compare(
                    f"preprocess, {name} -> {resize_px} -> {crop_px} px", "Pillow, whole, then crop", "images / CPU s",
                    items=len(some), ours_s=seconds[0], theirs_s=seconds[1], note=f"sources of {_size(some)} (median)",
                )
            )  # fmt: skip
    return rows


def _readable(data: bytes) -> bool:
    try:
        decode(data, 8)
    except DataError:
        return False
    return True


def _size(images: list[bytes]) -> str:
    sizes = []
    for data in images:
        with Image.open(io.BytesIO(data)) as image:
            sizes.append((image.width * image.height, f"{image.width} x {image.height} px"))
    return sorted(sizes)[len(sizes) // 2][1]
