"""Stored pictures become squares of one size, as the paper does it."""

import io

import numpy as np
import pytest
from PIL import Image

from align.pairs.picture import PictureError
from align.shard.gather import resize


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.new("RGBA", (300, 210), (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (encode(Image.new("RGBA", (300, 210), (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
        (encode(Image.new("LA", (300, 210), (0, 0)), "PNG"), (255, 255, 255)),
        (encode(Image.new("P", (300, 210), 0), "PNG", transparency=0), (255, 255, 255)),
        (encode(Image.new("CMYK", (300, 210), (0, 0, 0, 0)), "JPEG"), (255, 255, 255)),
        (encode(Image.new("L", (300, 210), 60), "JPEG"), (60, 60, 60)),
        (encode(Image.new("RGB", (300, 210), (0, 0, 255)), "GIF"), (0, 0, 255)),
    ],
)
def test_resize_reads_every_kind_of_image(data: bytes, expected: tuple[int, int, int]) -> None:
    pixels = np.asarray(Image.open(io.BytesIO(resize(data, 24, 95)))).astype(int)
    assert pixels.shape == (24, 24, 3)
    assert np.abs(pixels - np.array(expected)).max() <= 3


def test_resize_is_antialiased_and_does_not_keep_the_aspect() -> None:
    stripes = np.zeros((200, 400, 3), np.uint8)
    stripes[:, ::2] = 255  # nearest neighbour would give black or white, an average gives grey
    stripes[:100] = 0
    pixels = np.asarray(Image.open(io.BytesIO(resize(encode(Image.fromarray(stripes), "PNG"), 20, 95)))).astype(int)
    assert pixels[:9].max() <= 10
    assert np.abs(pixels[12:] - 127).max() <= 12


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8 cut off"])
def test_resize_refuses_what_is_no_image(data: bytes) -> None:
    with pytest.raises(PictureError):
        resize(data, 24, 95)
