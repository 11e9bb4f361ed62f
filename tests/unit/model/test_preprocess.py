"""Image bytes to pixels: sizes, transparency, crops, and bytes that are not an image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from align.errors import DataError
from align.model import preprocess
from align.model.preprocess import centre_crop, decode, random_crop, resized, to_pixels


def encoded(image, form):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def ramp(height=6, width=6):
    """Each pixel's red is its row, its green its column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, rows], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_any_format_becomes_a_square_of_the_same_colour(form):
    image = decode(encoded(Image.new("RGB", (90, 40), (10, 200, 120)), form), 16)
    assert image.shape == (16, 16, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - (10, 200, 120)).max() <= 12


def test_transparent_pixels_are_white():
    layer = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert decode(encoded(layer, "PNG"), 8).min() == 255


def test_grey_and_cmyk_jpegs_are_read():
    assert np.ptp(decode(encoded(Image.new("L", (20, 20), 90), "JPEG"), 8)) <= 1
    assert decode(encoded(Image.new("CMYK", (20, 20)), "JPEG"), 8).shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(5, 7), (40, 100), (346, 289), (1, 1), (3, 500), (32, 32)])
def test_resizing_is_that_of_torchvision(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    theirs = transforms.resize(torch.from_numpy(pixels).permute(2, 0, 1), [32, 32], InterpolationMode.BILINEAR)
    apart = np.abs(resized(pixels, 32).astype(int) - theirs.permute(1, 2, 0).numpy()).max()
    vectorised = torch.backends.cpu.get_cpu_capability() != "DEFAULT"  # elsewhere torchvision computes with floats
    assert apart <= (0 if vectorised else 1)


def test_downscaling_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    image = decode(encoded(Image.fromarray(stripes), "PNG"), 8)
    assert image.min() > 100 and image.max() < 155


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff\xe0 cut off", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_no_image(data):
    with pytest.raises(DataError, match="not an image"):
        decode(data, 8)


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_too_many_pixels_are_refused_by_the_header(form, monkeypatch):
    monkeypatch.setattr(preprocess, "MAX_PIXELS", 99)
    with pytest.raises(DataError, match="too many pixels: 10 x 10"):
        decode(encoded(Image.new("RGB", (10, 10)), form), 8)


def test_centre_crop():
    assert centre_crop(ramp(), 2)[:, :, 0].tolist() == [[2, 2], [3, 3]]


def cropped(draws, *, flip=True):
    out = np.empty((4, 4, 3), dtype=np.uint8)
    random_crop(ramp(), out, draws, flip=flip)
    return out


@pytest.mark.parametrize(("draw", "first"), [(0.0, 0), (0.34, 1), (0.9999, 2)])
def test_random_crop_reaches_both_ends(draw, first):
    crop = cropped([draw, draw, 0.9])
    assert crop[0, 0].tolist() == [first, first, first] and crop[3, 3].tolist() == [first + 3, first + 3, first + 3]


def test_flip_is_one_half_and_can_be_off():
    assert cropped([0.0, 0.0, 0.49])[0, :, 1].tolist() == [3, 2, 1, 0]
    assert cropped([0.0, 0.0, 0.49], flip=False)[0, :, 1].tolist() == [0, 1, 2, 3]
    assert cropped([0.0, 0.0, 0.5])[0, :, 1].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("side_px", [33, 64, 289])
def test_a_flip_mirrors_every_pixel(side_px):
    image = np.random.default_rng(0).integers(0, 256, (300, 310, 3), dtype=np.uint8)
    straight, mirrored = (np.empty((side_px, side_px, 3), dtype=np.uint8) for _ in range(2))
    random_crop(image, straight, [0.3, 0.6, 0.9], flip=True)
    random_crop(image, mirrored, [0.3, 0.6, 0.1], flip=True)
    assert np.array_equal(mirrored, straight[:, ::-1])


def test_a_smaller_crop_is_enlarged_and_a_larger_one_shows_more():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    out = np.empty((32, 32, 3), dtype=np.uint8)
    random_crop(image, out, [0.5, 0.99, 0.9], flip=False, side_px=24)
    assert np.array_equal(out, resized(image[8:32, 16:40], 32))
    random_crop(image, out, [0.5, 0.99, 0.1], flip=True, side_px=40)
    assert np.array_equal(out, resized(image, 32)[:, ::-1])


def test_a_crop_beyond_the_image_repeats_its_edges():
    image = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    out = np.empty((44, 44, 3), dtype=np.uint8)
    random_crop(image, out, [0.0, 0.999, 0.9], flip=False, side_px=44)
    assert np.array_equal(out[:40, 8:], image)
    assert (out[40:, 8:] == image[-1]).all() and (out[:40, :8] == image[:, :1]).all()


def test_memory_to_decode_into_changes_no_pixel():
    scratch = np.empty(3 * 50 * 40, dtype=np.uint8)
    for size in ((50, 40), (40, 30), (51, 40)):  # the last one does not fit
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        data = encoded(Image.fromarray(image), "JPEG")
        for size_px in (40, 24, 17):
            assert np.array_equal(decode(data, size_px, scratch), decode(data, size_px))
    square = encoded(Image.new("RGB", (40, 40), (9, 9, 9)), "JPEG")
    assert np.shares_memory(decode(square, 40, scratch), scratch)


def test_pixels_lie_between_minus_one_and_one():
    pixels = to_pixels(np.array([[[[0, 255, 51]]]], dtype=np.uint8))
    assert pixels.shape == (1, 3, 1, 1)
    assert pixels.flatten().tolist() == pytest.approx([-1.0, 1.0, -0.6])
