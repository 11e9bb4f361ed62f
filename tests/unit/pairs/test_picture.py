"""Picture headers, lying ones included; pixels come out upright, of 8 bits, on white."""

import ast
import io
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageOps, ImageStat

import align.pairs.picture
from align.pairs.perceptual_hash import image_signals
from align.pairs.picture import PictureError, decode, decode_pixels, is_finished_jpeg, read_header, shrink, small
from tests.support.hostile_pictures import EPS, chunk, encoded, png
from tests.support.warc_records import picture, png_header

MAX_PIXELS = 100_000_000


def test_header_of_a_huge_picture_costs_nothing():
    data = png_header(20_000, 10_000)
    assert (read_header(data).width_px, read_header(data).height_px) == (20_000, 10_000)
    with pytest.raises(PictureError, match="too many pixels: 20000 x 10000"):
        decode(data, max_pixels=100_000_000)
    with pytest.raises(PictureError):
        decode(png_header(200, 100), max_pixels=100_000_000)  # small enough, but it holds no pixels


def test_bytes_decide_what_a_picture_is():
    assert read_header(picture(3, 2, kind="JPEG")).format == "JPEG"
    for lie in (b"<html>not a picture", b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", EPS, b"BM", b"II\x2a\0"):
        with pytest.raises(PictureError):
            read_header(lie)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"])
def test_bytes_cut_off_or_changed_are_errors_of_one_kind(kind):
    whole = encoded(Image.effect_mandelbrot((90, 70), (-2, -1.2, 1, 1.2), 50).convert("RGB"), kind)
    broken = [whole[: len(whole) * part // 16] for part in range(16)]
    broken += [
        whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :]
        for at in range(0, len(whole), max(29, len(whole) // 30))
    ]
    for data in broken:
        for act in (
            read_header,
            lambda data: decode(data, max_pixels=MAX_PIXELS),
            lambda data: decode_pixels(data, 16, max_pixels=MAX_PIXELS),
        ):
            try:
                act(data)
            except PictureError as error:
                assert str(error)


def test_transparent_parts_become_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (2, 1), (255, 0, 0, 0)).save(buffer, "PNG")
    assert decode(buffer.getvalue(), max_pixels=100).getpixel((0, 0)) == (255, 255, 255)


def test_only_one_module_opens_pictures():
    root = Path(align.__file__).parent
    openers = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and (
                node.attr in ("decode_jpeg", "decode_image", "read_image", "imread")
                or (node.attr == "open" and isinstance(node.value, ast.Name) and node.value.id == "Image")
            ):
                openers.add(path.relative_to(root).as_posix())
    assert openers == {"pairs/picture.py", "pairs/picture_pixels.py"}


def corners():
    """96 x 64, each quarter of another colour."""
    image = Image.new("RGB", (96, 64), "red")
    for box, colour in (((48, 0, 96, 32), "lime"), ((0, 32, 48, 64), "blue"), ((48, 32, 96, 64), "white")):
        image.paste(colour, box)
    return image


def turned(kind, orientation):
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif[0x0112] = orientation
    return encoded(corners(), kind, exif=exif)


def same(left, right):
    return left.size == right.size and max(ImageStat.Stat(ImageChops.difference(left, right)).mean) < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_come_out_upright(kind, orientation):
    data = turned(kind, orientation)
    stored = corners()
    stored.getexif()[0x0112] = orientation
    seen = ImageOps.exif_transpose(stored)
    header = read_header(data)
    assert (header.width_px, header.height_px) == seen.size
    assert same(decode(data, max_pixels=MAX_PIXELS), seen)
    signals = image_signals(data, MAX_PIXELS)
    assert (signals.width_px, signals.height_px) == seen.size
    for hint in (16, 32):  # a JPEG is decoded at 1/4 and 1/2
        near = decode(data, max_pixels=MAX_PIXELS, hint_px=hint)
        assert same(near, seen.resize(near.size)) and (near.width > near.height) == (seen.width > seen.height)
    pixels = Image.fromarray(decode_pixels(data, 60, max_pixels=MAX_PIXELS))
    assert same(pixels, seen.resize(pixels.size)) and (pixels.width > pixels.height) == (seen.width > seen.height)
    small_jpeg, width, height = shrink(data, 32, 90, MAX_PIXELS)
    with Image.open(io.BytesIO(small_jpeg)) as image:
        assert image.size == (width, height) and not image.getexif()
        assert same(image.convert("RGB"), seen.resize(image.size))
    assert same(small(data, 48), seen.resize(small(data, 48).size))


def test_a_turned_jpeg_of_the_right_size_is_not_finished():
    square = Image.new("RGB", (72, 72), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert is_finished_jpeg(encoded(square, "JPEG"), 72)
    assert not is_finished_jpeg(encoded(square, "JPEG", exif=exif), 72)
    assert not is_finished_jpeg(encoded(square, "JPEG"), 71)
    assert not is_finished_jpeg(encoded(square, "PNG"), 72)


RAMP = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(16, axis=0)


@pytest.mark.parametrize(("kind", "image"), [
    ("PNG", Image.fromarray((RAMP * 65535).astype(np.uint16))),
    ("TIFF", Image.fromarray((RAMP * 65535).astype(np.uint16))),
    ("TIFF", Image.fromarray((RAMP * 65535).astype(np.int32))),
    ("TIFF", Image.fromarray((RAMP * 255).astype(np.int32))),
    ("TIFF", Image.fromarray((RAMP * 4e6 - 2e6).astype(np.int32))),
    ("TIFF", Image.fromarray(RAMP)),
    ("TIFF", Image.fromarray(RAMP * 255)),
    ("TIFF", Image.fromarray(RAMP * 8e4 - 100)),
], ids=["I;16 PNG", "I;16", "I of 16 bits", "I of 8 bits", "I, signed", "F to 1", "F to 255", "F, signed"])  # fmt: skip
def test_more_than_8_bits_are_scaled_to_8(kind, image):
    data = encoded(image, kind)
    for decoded in (
        decode(data, max_pixels=MAX_PIXELS),
        Image.fromarray(decode_pixels(data, 8, max_pixels=MAX_PIXELS)),
    ):
        pixels = np.asarray(decoded).astype(int)
        assert np.abs(pixels - (RAMP * 255)[..., None]).max() <= 1


def test_16_bit_colours_with_and_without_alpha():
    def stored(colour_type, samples):
        data = png(1, 2)
        header = data[16:24] + bytes([16, colour_type, 0, 0, 0])
        pixel = b"\0" + b"".join(sample.to_bytes(2, "big") for sample in samples)
        return data[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixel)) + chunk(b"IEND", b"")

    for colour_type, samples, seen in (
        (2, [0x8000, 0x4000, 0xFFFF], (128, 64, 255)),
        (4, [0x8000, 0xFFFF], (128, 128, 128)),
        (4, [0x8000, 0], (255, 255, 255)),
        (6, [0x8000, 0x4000, 0xFFFF, 0xFFFF], (128, 64, 255)),
    ):
        assert decode(stored(colour_type, samples), max_pixels=9).getpixel((0, 0)) == seen


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16"])
def test_strips_change_no_pixel(mode, monkeypatch):
    grey = Image.linear_gradient("L").resize((130, 190))
    make = {
        "RGBA": lambda: Image.merge("RGBA", [grey, grey.rotate(180), grey, grey.rotate(90)]),
        "I;16": lambda: Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    }
    data = encoded(make.get(mode, lambda: grey.convert(mode))(), "PNG", **({"transparency": 7} if mode == "P" else {}))
    whole = decode(data, max_pixels=MAX_PIXELS)
    monkeypatch.setattr("align.pairs.picture_pixels._LARGE_PIXELS", 100)
    monkeypatch.setattr("align.pairs.picture_pixels._PIXELS_AT_ONCE", 130 * 12)
    assert decode(data, max_pixels=MAX_PIXELS).tobytes() == whole.tobytes()
    assert decode(data, max_pixels=MAX_PIXELS, hint_px=30).tobytes() == whole.reduce(4).tobytes()


def test_what_no_jpeg_can_hold_is_not_shrunk():
    with pytest.raises(PictureError, match="too long: 76800 x 64 once shrunk"):
        shrink(encoded(Image.new("RGB", (1200, 1)), "PNG"), 64, 90, MAX_PIXELS)


def test_threads_together_stay_within_the_budget():
    budget, held, peaks, lock = align.pairs.picture._Budget(100), [0], [0], threading.Lock()

    def work(size):
        for _ in range(20):
            with budget.hold(size):
                with lock:
                    held[0] += size
                    peaks.append(held[0])
                time.sleep(0.0002)
                with lock:
                    held[0] -= size

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 30, 50, 60, 90, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(peak for peak in peaks if peak != 250) <= 100
    assert 250 in peaks  # larger than the budget: alone
