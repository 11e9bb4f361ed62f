"""Image bytes -> pixels (paper section 4.1): resized to a square, aspect not kept, cropped, scaled to [-1, 1].

Training crops at random and flips; evaluation crops the centre. Pictures are seen as on a web page: upright, as their
EXIF orientation says, and with white behind transparent pixels (`align.pairs.picture`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from align.errors import DataError
from align.pairs.picture import MAX_PIXELS, PictureError, decode_pixels


def decode(data: bytes, size_px: int, scratch: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Decodes an image and resizes it to a square, antialiased, aspect not kept.

    JPEGs are decoded at the smallest 1/2^k scale that is not below `size_px`.

    Args:
        data: the bytes of the file.
        size_px: side of the square.
        scratch: memory to decode JPEGs into, if they fit. It saves fresh pages for each image, which take a third of
            the time at 346 px.

    Returns:
        (size_px, size_px, 3) uint8 RGB, upright, possibly a view of `scratch`.

    Raises:
        DataError: the bytes do not decode, or the image has more than MAX_PIXELS pixels.
    """
    try:
        pixels = decode_pixels(data, size_px, max_pixels=MAX_PIXELS, scratch=scratch)
    except PictureError as error:
        raise DataError(f"not an image that can be decoded: {error}") from None
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    return resized(pixels, size_px)


def resized(pixels: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (size_px, size_px, 3), bilinear and antialiased; the same bytes on any CPU.

    Equals torchvision's `resize` on CPUs with AVX2, which also computes with bytes there; importing that takes as long
    as torch.
    """
    planes = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    found = F.interpolate(planes, (size_px, size_px), mode="bilinear", antialias=True)
    return np.ascontiguousarray(found[0].permute(1, 2, 0).numpy())


def centre_crop(image: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> the middle (size_px, size_px, 3)."""
    top, left = (image.shape[0] - size_px) // 2, (image.shape[1] - size_px) // 2
    return image[top : top + size_px, left : left + size_px]


def random_crop(
    image: NDArray[np.uint8], out: NDArray[np.uint8], draws: Sequence[float], *, flip: bool, side_px: int | None = None
) -> None:
    """A random crop and, with probability one half, a horizontal flip.

    Args:
        image: (H, W, 3).
        out: (size_px, size_px, 3); receives the crop.
        draws: three uniform numbers in [0, 1): top, left, flip.
        flip: whether to flip at all.
        side_px: of the crop, which is resized to `size_px`; beyond the image its edges are repeated. None: size_px.
    """
    size_px = len(out)
    side_px = side_px or size_px
    if (missing := [max(0, side_px - side) for side in image.shape[:2]]) != [0, 0]:
        # The image lies anywhere in the crop: the same draws say where.
        before = [int(draw * (rest + 1)) for draw, rest in zip(draws, missing, strict=False)]
        ends = [(first, rest - first) for first, rest in zip(before, missing, strict=True)]
        image = np.pad(image, [*ends, (0, 0)], mode="edge")
    top = int(draws[0] * (image.shape[0] - side_px + 1))
    left = int(draws[1] * (image.shape[1] - side_px + 1))
    crop = image[top : top + side_px, left : left + side_px]
    if side_px != size_px:
        crop = resized(crop, size_px)
    if flip and draws[2] < 0.5:
        # torch mirrors pixels of three bytes eight times as fast as NumPy does.
        mirrored = torch.from_numpy(crop).permute(2, 0, 1)[None].flip(3)[0].permute(1, 2, 0)
        torch.from_numpy(out).copy_(mirrored)
    else:
        out[:] = crop


def to_pixels(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    return torch.as_tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
